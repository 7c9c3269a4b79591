"""Users to be scored, each against every title it could discover (paper A, 4.1).

Candidates are the titles offered in the user's territory, less those it has watched earlier in the same calendar month
(they can no longer be discovered), or the source's fixed list where it has one.

Legend: `U` users of a chunk, `T` titles offered in their territory.
"""

# pyright: reportAttributeAccessIssue=false

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from mtrec_ray.columns import MAX_CELLS, concatenate_rows, take_rows
from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.lake.bucket import Bucket, Catalogue, month_start, to_datetime64
from mtrec_ray.lake.interactions import vectors_before
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.prior import activity
from mtrec_ray.streams.sampling import VALIDATION, split_of

PER_TERRITORY = ("territory", "title_index")
MAX_VALIDATION_USERS = 10_000


@dataclass(frozen=True)
class ScoringChunk:
    """Users of one territory and the titles they are scored against."""

    territory: int
    rows: np.ndarray  # (U,) int64 rows of the bucket; of no bucket in `validation_users`
    keys: np.ndarray  # (U,) uint64
    embedding: np.ndarray  # (U, user_width) float16, at the start of the day as the next two
    activity: np.ndarray  # (U,) int64, see `streams.prior`
    seen: np.ndarray  # (U, T) bool: watched before
    title_index: np.ndarray  # (T,) int32
    candidates: np.ndarray  # (U, T) bool
    labels: np.ndarray  # (U, T) bool: discovered on the day
    history: sp.csr_matrix | None = None  # (U, titles of the catalogue) 1 where discovered earlier; None: not needed

    def only(self, users: np.ndarray) -> "ScoringChunk":
        """Some of the users, (U,) bool."""
        return take_rows(self, users, unchanged=PER_TERRITORY)

    def with_sampled_negatives(self, count: int, seed: int) -> "ScoringChunk":
        """At most `count` negatives a user, drawn by hash from its candidates; discoveries stay.

        Most published figures use this protocol (1 + 99), which overstates accuracy (Krichene and Rendle, KDD 2020).
        """
        negatives = self.candidates & ~self.labels
        hashes = mix(self.keys[:, None], "sampled negatives", seed, self.title_index.astype(np.uint64))  # (U, T)
        hashes[~negatives] = np.iinfo(np.uint64).max
        if count < hashes.shape[1]:
            negatives &= hashes <= np.partition(hashes, count - 1, axis=1)[:, count - 1, None]
        return replace(self, candidates=negatives | (self.candidates & self.labels))


def read_candidates(lake: Lake, bucket: int) -> pa.Table | None:
    """The source's candidate lists of a bucket's users; None if it has none."""
    return lake.read("candidates", bucket) if "candidates" in lake.manifest.files else None


def scoring_chunks(
    lake: Lake,
    bucket: Bucket,
    rows: np.ndarray,
    catalogue: Catalogue,
    fixed: pa.Table | None,
    history: sp.csr_matrix | None = None,
) -> Iterator[ScoringChunk]:
    """Some rows of a bucket, at most `MAX_CELLS` user-title cells a chunk.

    Without `fixed` lists, everything offered on the catalogue's day is a candidate. `history` is of all users of the
    bucket, for scorers that need it.
    """
    start, end = catalogue.bounds
    events = bucket.discoveries(start, end)
    positive_cells = bucket.event_user[events], bucket.event_title[events]
    earlier = (bucket.event_time >= month_start(start)) & (bucket.event_time < to_datetime64(start))
    this_month = bucket.event_user[earlier], bucket.event_title[earlier]
    earlier = bucket.event_time < to_datetime64(start)
    before = bucket.event_user[earlier], bucket.event_title[earlier]
    fixed_cells = _fixed_cells(bucket, catalogue, fixed)
    has_fixed = np.isin(np.arange(len(bucket.keys)), fixed_cells[0])
    embedding, activities = vectors_before(lake, bucket, start), activity(bucket, to_datetime64(start))
    for territory in np.unique(bucket.territory[rows]).tolist():
        offer = catalogue.offers[territory]
        own = rows[bucket.territory[rows] == territory]
        for part in np.array_split(own, -(-len(own) * max(1, len(offer)) // MAX_CELLS)):
            candidates = ~(_cell_mask(bucket, part, offer, this_month) | has_fixed[part, None])
            yield ScoringChunk(
                territory=territory,
                rows=part,
                keys=bucket.keys[part],
                embedding=embedding[part],
                activity=activities[part],
                seen=_cell_mask(bucket, part, offer, before),
                title_index=offer,
                candidates=candidates | _cell_mask(bucket, part, offer, fixed_cells),
                labels=_cell_mask(bucket, part, offer, positive_cells),
                history=None if history is None else history[part],
            )


def _fixed_cells(bucket: Bucket, catalogue: Catalogue, fixed: pa.Table | None) -> tuple[np.ndarray, np.ndarray]:
    """Row of the user and index of the title of every known entry of the fixed lists."""
    if fixed is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    rows = pc.index_in(fixed["user_id"].combine_chunks(), value_set=bucket.users["user_id"].combine_chunks())
    lists = fixed["title_ids"].combine_chunks().filter(pc.is_valid(rows))
    user = np.repeat(rows.drop_null().to_numpy(), pc.list_value_length(lists).to_numpy())
    title = pc.index_in(lists.flatten(), value_set=catalogue.title_ids)
    known = pc.is_valid(title).to_numpy(zero_copy_only=False)
    return user[known].astype(np.int64), title.drop_null().to_numpy().astype(np.int32)


def _cell_mask(bucket: Bucket, rows: np.ndarray, offer: np.ndarray, cells: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(len(rows), len(offer)) bool: is (row, title) among the given (user, title) cells."""
    mask = np.zeros((len(rows), len(offer)), dtype=bool)
    if len(offer) == 0:
        return mask
    user, title = cells
    index = np.full(len(bucket.keys), -1, dtype=np.int64)
    index[rows] = np.arange(len(rows))
    column = np.searchsorted(offer, title).clip(max=len(offer) - 1)
    inside = (index[user] >= 0) & (offer[column] == title)
    mask[index[user[inside]], column[inside]] = True
    return mask


def validation_users(
    lake: Lake,
    sample: SampleConfig,
    bounds: tuple[datetime, datetime],
    buckets: Sequence[int],
    num_buckets: int,
    *,
    fixed_candidates: bool,
) -> list[ScoringChunk]:
    """Validation users of a worker's `buckets` out of `num_buckets`, a chunk per territory.

    A hash draws about `MAX_VALIDATION_USERS` of all workers'. Discoveries within `bounds`, [start, end), are positives.
    `fixed_candidates` scores the source's candidate lists, which are of its test days; else all that is offered.
    """
    expected = sample.validation_fraction * lake.manifest.counts["users"] * num_buckets
    fraction = MAX_VALIDATION_USERS * lake.manifest.num_buckets / max(1.0, expected)
    catalogue, found = Catalogue.of(lake, *bounds), defaultdict[int, list[ScoringChunk]](list)
    for index in buckets:
        bucket = Bucket.read(lake, index, ("embedding",))
        chosen = split_of(bucket.keys, sample) == VALIDATION
        chosen &= uniforms(bucket.keys, "validated in trials") < fraction
        fixed = read_candidates(lake, index) if fixed_candidates else None
        for chunk in scoring_chunks(lake, bucket, np.flatnonzero(chosen), catalogue, fixed):
            found[chunk.territory].append(chunk)
    return [concatenate_rows(parts, unchanged=PER_TERRITORY) for parts in found.values()]
