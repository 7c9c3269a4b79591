"""What is evaluated: trained propensity models, and the two references that every table should hold."""

from typing import Protocol

import numpy as np
import torch

from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.streams.scored_users import ScoringChunk


class Scorer(Protocol):
    """Scores every user of a chunk against its titles. Picklable."""

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        """(U, T) float32 logits."""
        ...


class PropensityScorer:
    """A two-tower model at one point of its training."""

    def __init__(self, model: TwoTower, title_embeddings: np.ndarray, group_of_territory: list[int]) -> None:
        self.model = model.eval()
        self.titles = model.title_vectors(torch.from_numpy(title_embeddings.astype(np.float32)))  # (titles, d)
        self.group_of_territory = group_of_territory

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        users = torch.from_numpy(chunk.embedding.astype(np.float32))
        num_groups = self.model.config.num_groups
        group = self.group_of_territory[chunk.territory] if num_groups > 1 else 0
        groups = torch.full((len(users),), group, dtype=torch.int64)
        titles = self.titles[torch.from_numpy(chunk.title_index.astype(np.int64))]
        return self.model.logits(self.model.user_vectors(users, groups), titles).numpy()


class PopularityScorer:
    """log(1 + discoveries of the title in the user's territory during the window): the same list for everybody."""

    def __init__(self, popularity: np.ndarray) -> None:
        self.popularity = popularity  # (territories, titles)

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        scores = np.log1p(self.popularity[chunk.territory, chunk.title_index]).astype(np.float32)
        return np.broadcast_to(scores, chunk.labels.shape)


class InteractionScorer:
    """Dot product of the user's and the title's interaction vectors: the representation without a model on top."""

    def __init__(self, title_interactions: np.ndarray) -> None:
        self.titles = title_interactions.astype(np.float32)  # (titles, width)

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        return chunk.embedding.astype(np.float32) @ self.titles[chunk.title_index].T
