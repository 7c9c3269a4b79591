"""What evaluation scores with: the interface, and two references, popularity and interaction vectors."""

from typing import Protocol

import numpy as np

from mtrec_ray.streams.scored_users import ScoringChunk


class Scorer(Protocol):
    """Scores every user of a chunk against its titles. Picklable."""

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        """(U, T) float32 logits."""
        ...


class PopularityScorer:
    """log(1 + window discoveries of the title in the user's territory): the same list for everybody."""

    def __init__(self, popularity: np.ndarray) -> None:
        self.popularity = popularity  # (territories, titles)

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        scores = np.log1p(self.popularity[chunk.territory, chunk.title_index]).astype(np.float32)
        return np.broadcast_to(scores, chunk.labels.shape)


class InteractionScorer:
    """Dot product of the user's and the title's interaction vectors: the representation without a model."""

    def __init__(self, title_interactions: np.ndarray) -> None:
        self.titles = title_interactions.astype(np.float32)  # (titles, width)

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        return chunk.embedding.astype(np.float32) @ self.titles[chunk.title_index].T
