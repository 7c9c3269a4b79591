"""Labelled pairs of one bucket: positives, and alpha times as many negatives on average.

As paper A (3.2, 4.1), which leaves the draw open: each eligible (user, title) becomes a negative independently, by a
hash of user and seed, so a user's negatives do not depend on readers, workers or buckets.

Legend: `S` sampled users of the bucket, `P` labelled pairs.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket, pair_code
from mtrec_ray.streams.catalogue import Catalogue


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs, sorted by user row."""

    user_row: np.ndarray  # (P,) int64 row in the bucket's users
    title_index: np.ndarray  # (P,) int32
    label: np.ndarray  # (P,) bool: True = positive


def labelled_pairs(bucket: Bucket, rows: np.ndarray, catalogue: Catalogue, negative_rate: float, salt: int) -> Pairs:
    """Positives and negatives of the sampled users, (S,) rows, in the catalogue's period.

    An eligible title becomes a negative with probability `negative_rate`; `salt` is the period's seed.
    """
    events = bucket.discoveries(*catalogue.bounds, catalogue.offer_mask)
    events = events[np.isin(bucket.event_user[events], rows)]
    negative_user, negative_title = _draw_negatives(bucket, rows, catalogue, negative_rate, salt)
    user_row = np.concatenate([bucket.event_user[events], negative_user])
    title_index = np.concatenate([bucket.event_title[events], negative_title])
    order = np.argsort(user_row, kind="stable")
    return Pairs(user_row[order], title_index[order], order < len(events))


def _draw_negatives(
    bucket: Bucket, rows: np.ndarray, catalogue: Catalogue, rate: float, salt: int
) -> tuple[np.ndarray, np.ndarray]:
    """User rows and title indices."""
    users, titles = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for territory in np.unique(bucket.territory[rows]):
        offer = catalogue.offers[territory]
        own = rows[bucket.territory[rows] == territory]
        which, position = bernoulli_positions(bucket.keys[own], len(offer), rate, salt)
        users.append(own[which])
        titles.append(offer[position])
    user_row, title_index = np.concatenate(users), np.concatenate(titles)
    eligible = ~np.isin(pair_code(user_row, title_index), bucket.known_pairs(*catalogue.bounds))
    return user_row[eligible], title_index[eligible]


def bernoulli_positions(keys: np.ndarray, length: int, rate: float, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """(row of `keys`, position in [0, length)), each chosen with probability `rate`; ordered.

    Geometric gaps between them are drawn from a hash of (key, draw number): the cost is that of the positions drawn,
    not of keys x length, and a key's positions depend on that key alone.
    """
    if length == 0 or rate <= 0 or len(keys) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if rate >= 1:
        return np.repeat(np.arange(len(keys)), length), np.tile(np.arange(length), len(keys))
    chunk = int(length * rate + 4 * np.sqrt(length * rate) + 4)
    rows, positions = [], []
    unfinished, last = np.arange(len(keys)), np.full(len(keys), -1.0)
    draw = 0
    while len(unfinished):
        counters = np.arange(draw, draw + chunk, dtype=np.uint64)
        gaps = np.floor(np.log1p(-uniforms(keys[unfinished, None], "negatives", salt, counters)) / np.log1p(-rate)) + 1
        position = last[:, None] + np.cumsum(gaps, axis=1)
        which, _ = inside = np.nonzero(position < length)
        rows.append(unfinished[which])
        positions.append(position[inside].astype(np.int64))
        continues = position[:, -1] < length
        unfinished, last = unfinished[continues], position[continues, -1]
        draw += chunk
    row, position = np.concatenate(rows), np.concatenate(positions)
    order = np.lexsort((position, row))
    return row[order], position[order]
