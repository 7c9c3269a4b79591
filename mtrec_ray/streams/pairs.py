"""Labelled pairs of one bucket: first-time positives, and alpha times as many negatives on average (paper A, 3.2, 4.1).

Paper A takes exactly alpha times as many negatives as positives and does not say how they are drawn. Here each eligible
(user, title) becomes a negative by a draw of its own, at one rate for the whole period (`PeriodPlan.negative_rate`). As
without replacement, no pair comes twice; the total is right only on average, with a standard deviation below its square
root. In return each draw is a hash of the user and the seed: a bucket needs one number from the others, and a user's
negatives are the same for any number of readers, workers and buckets. An exact total would need a draw over the pairs
of all buckets.

Legend: `S` sampled users of the bucket, `P` labelled pairs.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket, pair_code
from mtrec_ray.streams.catalogue import Catalogue


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs, sorted by user row."""

    user_row: np.ndarray
    """(P,) int64 row in the bucket's users."""
    title_index: np.ndarray
    """(P,) int32."""
    label: np.ndarray
    """(P,) bool: True = positive."""


def labelled_pairs(
    bucket: Bucket,
    rows: np.ndarray,
    catalogue: Catalogue,
    bounds: tuple[datetime, datetime],
    negative_rate: float,
    salt: int,
) -> Pairs:
    """Positives and negatives of the sampled users for one period.

    Args:
        bucket: the bucket.
        rows: (S,) sampled users.
        catalogue: offered and promoted titles.
        bounds: [start, end) of the period: the window or one day.
        negative_rate: share of a user's eligible titles that become negatives.
        salt: seed of the negatives; another one for each period.
    """
    sampled = np.zeros(len(bucket.keys), dtype=bool)
    sampled[rows] = True
    events = bucket.discoveries(*bounds, catalogue.offer_mask)
    events = events[sampled[bucket.event_user[events]]]
    positive_user, positive_title = bucket.event_user[events], bucket.event_title[events]
    negative_user, negative_title = draw_negatives(bucket, rows, catalogue, bounds, negative_rate, salt)
    user_row = np.concatenate([positive_user, negative_user])
    order = np.argsort(user_row, kind="stable")
    label = np.arange(len(user_row)) < len(positive_user)
    return Pairs(user_row[order], np.concatenate([positive_title, negative_title])[order], label[order])


def draw_negatives(
    bucket: Bucket,
    rows: np.ndarray,
    catalogue: Catalogue,
    bounds: tuple[datetime, datetime],
    rate: float,
    salt: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Each eligible (user, title) with probability `rate`, independently: user rows and title indices.

    Walks each user's offer by geometric gaps drawn from a hash of (user, draw number), so the cost is that of the pairs
    drawn and not of users x titles, no title comes twice, and a user's negatives depend on nothing but that user.
    """
    users, titles = [], []
    for territory in np.unique(bucket.territory[rows]):
        offer = catalogue.offers[territory]
        own = rows[bucket.territory[rows] == territory]
        which, position = bernoulli_positions(bucket.keys[own], len(offer), rate, salt)
        users.append(own[which])
        titles.append(offer[position])
    if not users:
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    user_row, title_index = np.concatenate(users), np.concatenate(titles)
    known = bucket.known_pairs(*bounds)
    eligible = ~np.isin(pair_code(user_row, title_index), known)
    return user_row[eligible], title_index[eligible]


def bernoulli_positions(keys: np.ndarray, length: int, rate: float, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in [0, length) chosen independently with probability `rate` for each key.

    Returns:
        (row of `keys`, position), both (chosen,), ordered by row and position.
    """
    if length == 0 or rate <= 0 or len(keys) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if rate >= 1:
        return np.repeat(np.arange(len(keys)), length), np.tile(np.arange(length), len(keys))
    chunk = int(length * rate + 4 * np.sqrt(length * rate) + 4)
    rows, positions = [], []
    open_rows, last = np.arange(len(keys)), np.full(len(keys), -1.0)
    draw = 0
    while len(open_rows):
        counters = np.arange(draw, draw + chunk, dtype=np.uint64)
        gaps = np.floor(np.log1p(-uniforms(keys[open_rows, None], "negatives", salt, counters)) / np.log1p(-rate)) + 1
        position = last[:, None] + np.cumsum(gaps, axis=1)
        which, _ = inside = np.nonzero(position < length)
        rows.append(open_rows[which])
        positions.append(position[inside].astype(np.int64))
        still_open = position[:, -1] < length
        open_rows, last = open_rows[still_open], position[still_open, -1]
        draw += chunk
    row, position = np.concatenate(rows), np.concatenate(positions)
    order = np.lexsort((position, row))
    return row[order], position[order]
