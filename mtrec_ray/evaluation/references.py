"""Item-kNN, EASE and iALS, and the blend of their scores with popularity.

Each is fitted on binary histories X (users x titles) and scores a user by its own history row, so users that it was
not fitted on are scored too:

* item-kNN: similarity of two titles = users in common / (popularity powers + shrinkage) (Deshpande & Karypis 2004)
* EASE: the linear model X B = X of least squares with ridge penalty and a zero diagonal (Steck 2019)
* iALS: factors of titles by `implicit`; a user's factors solve its own least squares (Hu, Koren & Volinsky 2008)

Legend: U users of a chunk, T titles of the catalogue, C titles of the chunk, d factors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits

SPREAD = 8.0  # logits that the best raw score of a user is spread over: bins of metrics are fractions of a logit
SEEN_PENALTY = 1000.0
OWN_POWER = 0.5  # exponent of a watched title's popularity in item-kNN
MAX_CONDITION = 1e4  # of a matrix that is inverted in float32
Settings = dict[str, Any]
Grid = Mapping[str, Sequence[Any]]


def lengths(history: sp.csr_matrix) -> np.ndarray:
    """(U,) titles in each history."""
    return np.diff(history.indptr)


class RawModel(Protocol):
    """Scores histories without popularity."""

    def raw(self, territory: int, history: sp.csr_matrix, title_index: np.ndarray) -> np.ndarray:
        """(U, T) binary histories of users of one territory, (C,) titles -> (U, C) float32."""
        ...


@dataclass(frozen=True)
class TitleSimilarities:
    """A score is the sum of similarities to the titles of the history."""

    matrices: Sequence[sp.csr_matrix]  # (T, T) float32 from watched to scored title: one, or by territory

    def raw(self, territory: int, history: sp.csr_matrix, title_index: np.ndarray) -> np.ndarray:
        matrix = self.matrices[territory if len(self.matrices) > 1 else 0]
        return sp.csr_matrix(history.astype(np.float32) @ matrix).toarray()[:, title_index]


@dataclass(frozen=True)
class LinearWeights:
    """A score is the sum of the weights from the titles of the history."""

    titles: np.ndarray  # (K,) title indices; others neither count nor have a score
    weights: np.ndarray  # (K, K) float32 from watched to scored title

    def raw(self, territory: int, history: sp.csr_matrix, title_index: np.ndarray) -> np.ndarray:
        column = np.full(history.get_shape()[1], -1, dtype=np.int64)
        column[self.titles] = np.arange(len(self.titles))
        known = column[title_index] >= 0
        scores = np.zeros((len(lengths(history)), len(title_index)), dtype=np.float32)
        found = history[:, self.titles].astype(np.float32) @ self.weights  # (U, K)
        scores[:, known] = found[:, column[title_index[known]]]
        return scores


@dataclass(frozen=True)
class TitleFactors:
    """A score is the dot product of a title's factors and those solved for the user's history."""

    titles: np.ndarray  # (T, d) float32
    alpha: float  # confidence of a watched title; others have 1
    regularization: float

    def raw(self, territory: int, history: sp.csr_matrix, title_index: np.ndarray) -> np.ndarray:
        width = self.titles.shape[1]
        gram = self.titles.T @ self.titles + self.regularization * np.eye(width, dtype=np.float32)
        solved = np.linalg.solve(gram, self.titles.T).T  # (T, d)
        users = np.zeros((len(lengths(history)), width), dtype=np.float32)
        for row in np.flatnonzero(lengths(history)):
            own = history.indices[history.indptr[row] : history.indptr[row + 1]]
            titles, more = self.titles[own], self.alpha - 1  # (n, d)
            if len(own) < width:  # the same by an n x n system (push-through identity)
                weights = np.linalg.solve(np.eye(len(own)) + more * titles @ solved[own].T, np.ones(len(own)))
                users[row] = self.alpha * weights @ solved[own]
            else:
                users[row] = np.linalg.solve(gram + more * titles.T @ titles, self.alpha * titles.sum(axis=0))
        return users @ self.titles[title_index].T


def title_similarities(
    gram: sp.csr_matrix, shrinkage: float, title_power: float, neighbours: int | None
) -> sp.csr_matrix:
    """Item-kNN: `gram` (T, T) users in common -> (T, T) float32 from watched to scored title.

    common(i, j) / (users(i)^OWN_POWER users(j)^title_power + shrinkage); each watched title keeps the scored titles
    most similar to it, None all.
    """
    users, common = np.asarray(gram.diagonal()), sp.coo_matrix(gram)
    watched, scored = common.row, common.col
    weights = common.data / (users[watched] ** OWN_POWER * users[scored] ** title_power + shrinkage)
    keep = watched != scored
    found = sp.csr_matrix((weights[keep].astype(np.float32), (watched[keep], scored[keep])), shape=gram.shape)
    if neighbours is not None:
        for start, end in zip(found.indptr[:-1], found.indptr[1:], strict=True):
            if end - start > neighbours:
                own = found.data[start:end]
                own[np.argsort(own, kind="stable")[: end - start - neighbours]] = 0.0
        found.eliminate_zeros()
    return found


def ease_weights(gram: sp.csr_matrix, penalty: float, max_titles: int) -> LinearWeights:
    """EASE's B in closed form, -P_ij / P_jj with P = (X'X + penalty I)^-1 and a zero diagonal.

    `gram` X'X (T, T); titles without users and all but the `max_titles` with most users are left out.
    """
    users = np.asarray(gram.diagonal())
    size = min(max_titles, np.count_nonzero(users))
    titles = np.sort(np.argsort(users, kind="stable")[len(users) - size :])
    own = gram[titles][:, titles].toarray()
    well_conditioned = own.sum(axis=1).max(initial=0.0) < MAX_CONDITION * penalty  # a bound of the largest eigenvalue
    matrix = torch.from_numpy(own).to(torch.float32 if well_conditioned else torch.float64)
    matrix.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    weights = (inverse / -inverse.diagonal()).to(torch.float32).fill_diagonal_(0.0)
    return LinearWeights(titles, weights.contiguous().numpy())  # products with column-major matrices copy them


def ials_factors(history: sp.csr_matrix, factors: int, alpha: float, regularization: float) -> np.ndarray:
    """(T, d) float32 title factors of (N, T) histories, by `implicit`."""
    from implicit.cpu.als import AlternatingLeastSquares  # an optional library

    with threadpool_limits(1, "blas"):  # implicit warns otherwise
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, random_state=0, num_threads=1
        )
        model.fit(history.astype(np.float32), show_progress=False)
    return np.asarray(model.item_factors, dtype=np.float32)


@dataclass(frozen=True)
class Blend:
    """Raw scores and log popularity as one score, alike in scale for all users."""

    unit: float  # typical best raw score of a user
    normalise: str  # `none`; `length`: by the root of the history's length; `max`: by the user's best raw score
    popularity_weight: float
    exclude_seen: bool  # titles of the history come last

    @staticmethod
    def best_raw(raw: np.ndarray, num_seen: np.ndarray, normalise: str) -> np.ndarray:
        """Positive best raw scores of the users, (U, C) and (U,) lengths of histories."""
        best = _normalised(raw, num_seen, normalise).max(axis=1, initial=0.0)
        return best[best > 0]

    def scores(
        self, raw: np.ndarray, history: sp.csr_matrix, title_index: np.ndarray, log_popularity: np.ndarray
    ) -> np.ndarray:
        """(U, C) raw scores, (U, T) histories, (C,) log popularity -> (U, C) float32."""
        scores = _normalised(raw, lengths(history), self.normalise) * np.float32(SPREAD / self.unit)
        scores += np.float32(self.popularity_weight) * log_popularity.astype(np.float32)
        if self.exclude_seen:
            scores[history[:, title_index].nonzero()] -= SEEN_PENALTY
        return scores


def _normalised(raw: np.ndarray, num_seen: np.ndarray, normalise: str) -> np.ndarray:
    if normalise == "none":
        return raw.copy()
    by = np.sqrt(num_seen) if normalise == "length" else raw.max(axis=1, initial=0.0)
    return raw / np.where(by > 0, by, 1.0).astype(np.float32)[:, None]


def choose_settings(grid: Grid, measure: Callable[[Settings], float], passes: int = 1) -> tuple[Settings, float]:
    """Best settings of a grid, chosen one after another from the first values on.

    `measure` is larger the better. A value must be better to replace the earlier one: ties keep the first.
    """
    best: Settings = {name: values[0] for name, values in grid.items()}
    measured = {tuple(best.values()): measure(best)}
    for name, values in [*grid.items()] * passes:
        for value in values:
            other, best_value = best | {name: value}, measured[tuple(best.values())]
            key = tuple(other.values())
            if key not in measured:
                measured[key] = measure(other)
            best = other if measured[key] > best_value else best
    return best, measured[tuple(best.values())]
