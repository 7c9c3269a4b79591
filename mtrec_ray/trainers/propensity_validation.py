"""Figures of a propensity model on validation users.

Legend: `G` territories, `R` replicates (the value itself first), `U` users of a chunk, `T` titles.
"""

from collections.abc import Iterable

import numpy as np
import torch

from mtrec_ray.evaluation.intervals import interval, nan_mean
from mtrec_ray.evaluation.state import EvaluationResult, EvaluationSettings, EvaluationState
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.workers import Workers

MEASURES = ("pr_auc", "ndcg@10")
MEANS = ("all", "mean", "weighted")
METRICS = tuple(f"{measure}/{mean}" for measure in MEASURES for mean in MEANS)
"""Over all users pooled, as mean over territories, and as their mean weighted by positives."""


class PropensityScorer:
    """A two-tower model at one point of its training, in eval mode. Picklable."""

    def __init__(self, model: TwoTower, title_embeddings: np.ndarray, group_of_territory: list[int]) -> None:
        self.model, self.device = model.eval(), model.user_tower.first.device
        titles = torch.from_numpy(title_embeddings.astype(np.float32)).to(self.device)
        self.titles = model.title_vectors(titles)  # (titles, d)
        self.group_of_territory = group_of_territory

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        """(U, T) float32 logits."""
        users = torch.from_numpy(chunk.embedding.astype(np.float32)).to(self.device)
        num_groups = self.model.config.num_groups
        group = self.group_of_territory[chunk.territory] if num_groups > 1 else 0
        groups = torch.full((len(users),), group, dtype=torch.int64, device=self.device)
        titles = self.titles[torch.from_numpy(chunk.title_index.astype(np.int64)).to(self.device)]
        return self.model.logits(self.model.user_vectors(users, groups), titles).cpu().numpy()


def evaluate_chunks(
    scorer: PropensityScorer, chunks: Iterable[ScoringChunk], settings: EvaluationSettings, workers: Workers
) -> EvaluationResult:
    """Score this worker's chunks and merge what all workers counted."""
    state = EvaluationState(settings)
    for chunk in chunks:
        logits = scorer.score(chunk)
        state.add(chunk.territory, chunk.keys, logits, chunk.labels, chunk.candidates, chunk.title_index)
    if workers.size > 1:
        states: list[EvaluationState | None] = [None] * workers.size
        torch.distributed.all_gather_object(states, state)
        state, *others = [one for one in states if one is not None]
        for other in others:
            state.merge(other)
    return state.summarise()


def summarise(result: EvaluationResult) -> dict[str, float]:
    """`METRICS` of a result with `_low` and `_high`; NaN without any positive."""
    figures = {}
    for measure in MEASURES:
        rows = result.metrics[measure]  # (G + 1, R)
        territories, weights = rows[:-1], result.counts["num_positives"][:-1, None]
        means = (rows[-1], nan_mean(territories), nan_mean(territories, weights))
        for name, replicates in zip(MEANS, means, strict=True):
            found, key = interval(replicates), f"{measure}/{name}"
            figures |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
    return figures
