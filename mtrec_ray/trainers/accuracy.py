"""Figures of a sequential model on held-out events."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.evaluation.next_title import NextTitleMetrics, next_title_metrics, sample_negatives
from mtrec_ray.streams.sequences import HeldOutUsers

NEGATIVES_SEED = 0  # the sampled negatives are the same for every model and run


def held_out_metrics(users: HeldOutUsers, user_vectors: Tensor, title_vectors: Tensor) -> NextTitleMetrics:
    """Figures of U users, maybe none, from vectors (U, d) and titles (N, d) by dot product."""
    return stacked_metrics(users, user_vectors[None], title_vectors)[0]


def stacked_metrics(users: HeldOutUsers, user_vectors: Tensor, title_vectors: Tensor) -> list[NextTitleMetrics]:
    """`held_out_metrics` of each of K models with vectors (K, U, d), on the same negatives."""
    nobody = np.zeros((0, len(title_vectors)), dtype=np.float32)
    none_drawn = sample_negatives(users.target[:0], nobody > 0, users.keys[:0])
    parts = [[next_title_metrics(nobody, users.target[:0], none_drawn)] for _ in user_vectors]
    for rows, seen in users.chunks(len(title_vectors)):
        negatives = sample_negatives(users.target[rows], seen, users.keys[rows], NEGATIVES_SEED)
        for part, vectors in zip(parts, user_vectors[:, rows], strict=True):
            scores = (vectors @ title_vectors.t()).cpu().numpy()
            part.append(next_title_metrics(scores, users.target[rows], negatives))
    return [NextTitleMetrics(*map(np.concatenate, zip(*part, strict=True))) for part in parts]


@torch.no_grad()
def vectors_in_chunks(vectors_of: Callable[..., Tensor], *inputs: Tensor, size: int = 1024) -> Tensor:
    """`vectors_of` U rows of each input -> (..., U, d), a bounded number of rows at a time."""
    parts = zip(*(rows.split(size) for rows in inputs), strict=True)
    return torch.cat([vectors_of(*part) for part in parts], dim=-2)
