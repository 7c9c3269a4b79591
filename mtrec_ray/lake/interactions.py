"""User and title vectors: a truncated SVD of the window's discoveries.

The SVD of the scaled user x title matrix X needs only the title x title matrix X'X, a sum over buckets: with its
eigenvectors V and eigenvalues S^2, a title's vector is its row of V S, and a user's is its own row of X times V. So a
user's vector can be computed from any part of its history:

* the full vector, of the training window, for serving; on a later day, evaluation and training compute it anew from
  the events before that day (`vectors_before`), for which the titles keep what turns a history into a vector;
* K to train with. In sample, a user's vector would hold the very titles it is to predict. Where events have an order
  of time, the space is fitted on the first part of the window, and the rest is divided into K folds by time; the k-th
  vector holds what came before fold k. So a user's past predicts its future, as in use, and no title of a fold has
  shaped the space. Otherwise a user's titles are dealt out to the folds; the k-th vector leaves out those of fold k.

Legend: `N` users of a bucket, `T` titles, `w` width, `K` folds.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, pair_code, to_datetime64, user_and_title, within
from mtrec_ray.lake.config import InteractionConfig
from mtrec_ray.lake.manifest import Lake

Bounds = tuple[datetime, datetime]  # [start, end) of the window
FITTED_FRACTION = 0.6  # of the window's events, the first ones: the space is fitted on them
NUM_SLICES = 4096  # of the window, from which the starts of folds are chosen
TITLE_POWER, USER_POWER = 0.35, 0.5
"""X is divided by (users of the title)^0.35 and (titles of the user)^0.5: best on validation users of five markets."""


@dataclass(frozen=True)
class InteractionSpace:
    """Vectors of titles, and what turns histories into vectors of users."""

    title_vectors: np.ndarray  # (T, w) float32
    projection: np.ndarray  # (T, w) float32: a user's vector is its scaled history row times this


def history_matrix(bucket: Bucket, events: np.ndarray, num_titles: int) -> sp.csr_matrix:
    """(N, T) with 1 where the user has one of the event rows `events` of the title."""
    index = bucket.event_user[events], bucket.event_title[events]
    matrix = sp.csr_matrix((np.ones(len(events), dtype=np.float64), index), shape=(len(bucket.keys), num_titles))
    matrix.data[:] = 1.0
    return matrix


def scale_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Each row divided by (its number of entries)^USER_POWER."""
    lengths = np.maximum(np.diff(matrix.indptr), 1)
    return sp.csr_matrix(sp.diags(lengths**-USER_POWER) @ matrix)


def count_events(index: int, lake: Lake, bounds: Bounds) -> np.ndarray:
    """(NUM_SLICES,) events of one bucket by equal slice of the window."""
    times = Bucket.read(lake, index).event_time
    slices = np.searchsorted(_slice_starts(bounds), times[within(times, *bounds)], side="right") - 1
    return np.bincount(slices, minlength=NUM_SLICES)


def count_histories(index: int, lake: Lake, bounds: Bounds) -> tuple[sp.csr_matrix, np.ndarray, int]:
    """Of one bucket: title x title matrix, users of each title, users with a history."""
    bucket = Bucket.read(lake, index)
    history = history_matrix(bucket, np.flatnonzero(within(bucket.event_time, *bounds)), lake.titles.num_rows)
    scaled = scale_rows(history)
    num_users = int((np.diff(history.indptr) > 0).sum())
    return sp.csr_matrix(scaled.T @ scaled), np.asarray(history.sum(axis=0)).ravel(), num_users


def _slice_starts(bounds: Bounds) -> np.ndarray:
    """(NUM_SLICES,) datetime64[us] starts of equal slices of the window."""
    start, end = map(to_datetime64, bounds)
    return start + (end - start) * np.arange(NUM_SLICES) // NUM_SLICES


def fold_starts(bounds: Bounds, events: np.ndarray, num_folds: int) -> np.ndarray:
    """(K,) datetime64[us] starts of folds of about as many events, after the first part.

    `events` by slice of the window. None where no event would be left for the first part.
    """
    before = np.cumsum(events) - events
    wanted = events.sum() * (FITTED_FRACTION + (1 - FITTED_FRACTION) * np.arange(num_folds) / num_folds)
    starts = np.searchsorted(before, wanted, side="right") - 1
    return _slice_starts(bounds)[starts if before[starts[0]] else starts[:0]]


def fit_space(
    gram: sp.csr_matrix, title_users: np.ndarray, num_users: int, config: InteractionConfig
) -> InteractionSpace:
    """Decompose `gram`, (T, T) the sum over users of x x' for row-scaled histories x.

    Vectors are scaled to unit mean square over the `num_users` with a history, and over titles weighted by their
    `title_users`: float16 and batch normalisation need numbers near one. A catalogue smaller than the width gives zero
    columns at the end.
    """
    column_scale = np.maximum(title_users, 1).astype(np.float64) ** -TITLE_POWER
    scaled = sp.csr_matrix(sp.diags(column_scale) @ gram @ sp.diags(column_scale))
    squares, vectors = _leading_eigenpairs(scaled, config.width, config.seed)
    singular = np.sqrt(np.maximum(squares, 0.0))
    nonzero = singular > 1e-6 * max(singular.max(initial=0.0), 1e-12)
    singular = np.where(nonzero, singular, 0.0)
    titles = vectors * singular
    projection = column_scale[:, None] * vectors * nonzero
    titles /= np.sqrt(np.average(np.square(titles).mean(axis=1), weights=title_users))
    projection /= np.sqrt(np.square(singular).sum() / (config.width * max(1, num_users)))
    return InteractionSpace(_padded(titles, config.width), _padded(projection, config.width))


def user_vectors(bucket: Bucket, events: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """(N, w) float32: each user's vector from the given event rows; zero without any."""
    history = history_matrix(bucket, events, len(projection))
    return np.asarray(scale_rows(history) @ projection, dtype=np.float32)


def vectors_before(lake: Lake, bucket: Bucket, time: datetime) -> np.ndarray:
    """(N, user_width) float16: each user's vector as of `time`.

    Of the events from the window's start on; the lake's own, which the bucket was read with, where they have no order.
    """
    embeddings = lake.manifest.embeddings
    start, end = embeddings.window_start, embeddings.window_end
    if not embeddings.fold_starts or start is None or time == end:
        return fixed_width_matrix(bucket.users["embedding"])
    events = np.flatnonzero(within(bucket.event_time, start, time))
    return user_vectors(bucket, events, lake.title_projection).astype(np.float16)


def fold_vectors(
    bucket: Bucket, bounds: Bounds, projection: np.ndarray, num_folds: int, seed: int, starts: np.ndarray
) -> np.ndarray:
    """(N, K * w) float32: a user's vectors to train with, one after another.

    The k-th is of what came before fold k, or leaves out its titles where folds have no `starts`.
    """
    events = np.flatnonzero(within(bucket.event_time, *bounds))
    if len(starts):
        before = [events[bucket.event_time[events] < start] for start in starts]
        return np.concatenate([user_vectors(bucket, known, projection) for known in before], axis=1)
    fold = fold_of_pairs(bucket, bounds, bucket.event_user[events], bucket.event_title[events], num_folds, seed)
    return np.concatenate([user_vectors(bucket, events[fold != k], projection) for k in range(num_folds)], axis=1)


def fold_of_pairs(
    bucket: Bucket, bounds: Bounds, user_row: np.ndarray, title_index: np.ndarray, num_folds: int, seed: int
) -> np.ndarray:
    """Fold by hash of each (user, title) pair; (P,), (P,) -> (P,) int64 in [0, num_folds).

    The titles of a user's history are dealt out evenly in the order of a hash, so every vector of a user with two
    titles or more has a title left; any other title (a negative) gets a fold by its hash alone.
    """
    inside = within(bucket.event_time, *bounds)
    history = np.unique(pair_code(bucket.event_user[inside], bucket.event_title[inside]))
    user, title = user_and_title(history)
    order = np.lexsort((_hashes(bucket, user, title, seed), user))
    counts = np.bincount(user, minlength=len(bucket.keys))
    rank = np.empty(len(history), dtype=np.int64)
    rank[order] = np.arange(len(history)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = (mix(bucket.keys, "first fold", seed) % np.uint64(num_folds)).astype(np.int64)
    dealt = (rank + first[user]) % num_folds
    folds = (_hashes(bucket, user_row, title_index, seed) % np.uint64(num_folds)).astype(np.int64)
    pairs = pair_code(user_row, title_index)
    index = np.searchsorted(history, pairs)
    known = index < len(history)
    known[known] = history[index[known]] == pairs[known]
    folds[known] = dealt[index[known]]
    return folds


def _hashes(bucket: Bucket, user_row: np.ndarray, title_index: np.ndarray, seed: int) -> np.ndarray:
    return mix(bucket.keys[user_row], "fold", seed, title_index.astype(np.uint64))


def _leading_eigenpairs(matrix: sp.csr_matrix, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues, descending, and their vectors with the largest entry positive."""
    size, _ = matrix.get_shape()
    if width >= size - 1:
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        start = np.random.default_rng(seed).standard_normal(size)
        values, vectors = eigsh(matrix, k=width, v0=start)
    order = np.argsort(-values, kind="stable")[:width]
    vectors = vectors[:, order]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return values[order], vectors * np.where(largest < 0, -1.0, 1.0)


def _padded(matrix: np.ndarray, width: int) -> np.ndarray:
    return np.pad(matrix, ((0, 0), (0, width - matrix.shape[1]))).astype(np.float32)
