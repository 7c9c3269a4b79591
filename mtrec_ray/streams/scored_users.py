"""Users to be scored on an evaluation day: each against every title it could discover (paper A, 4.1).

Candidates are the titles offered in the user's territory, less those it has watched earlier in the same calendar month
(they can no longer be discovered), or the fixed list where the source gives one.

Legend: `U` users of a chunk, `T` titles offered in their territory.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, month_start, to_datetime64
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.catalogue import Catalogue

MAX_CELLS = 4_000_000
"""Users x titles of a chunk."""


@dataclass(frozen=True)
class ScoringChunk:
    """Users of one territory and the titles they are scored against."""

    territory: int
    rows: np.ndarray
    """(U,) int64 rows of the bucket."""
    keys: np.ndarray
    """(U,) uint64."""
    embedding: np.ndarray
    """(U, user_width) float16."""
    title_index: np.ndarray
    """(T,) int32."""
    candidates: np.ndarray
    """(U, T) bool."""
    labels: np.ndarray
    """(U, T) bool: discovered on the day."""

    def only(self, users: np.ndarray) -> "ScoringChunk":
        """The chunk of some of its users; (U,) bool."""
        return ScoringChunk(
            self.territory,
            self.rows[users],
            self.keys[users],
            self.embedding[users],
            self.title_index,
            self.candidates[users],
            self.labels[users],
        )

    @staticmethod
    def concatenate(chunks: "list[ScoringChunk]") -> "ScoringChunk":
        """Users of one territory and day from several buckets; `rows` no longer point into one."""
        first = chunks[0]
        return ScoringChunk(
            first.territory,
            np.concatenate([chunk.rows for chunk in chunks]),
            np.concatenate([chunk.keys for chunk in chunks]),
            np.concatenate([chunk.embedding for chunk in chunks]),
            first.title_index,
            np.concatenate([chunk.candidates for chunk in chunks]),
            np.concatenate([chunk.labels for chunk in chunks]),
        )

    def with_sampled_negatives(self, count: int, seed: int) -> "ScoringChunk":
        """At most `count` negatives a user, drawn by hash from its candidates; its discoveries stay.

        The protocol of most published figures (1 + 99). It flatters: a title that outranks 99 may be outranked by
        hundreds, see Krichene and Rendle, KDD 2020.
        """
        negatives = self.candidates & ~self.labels
        lots = mix(self.keys[:, None], "sampled negatives", seed, self.title_index.astype(np.uint64))  # (U, T)
        lots[~negatives] = np.iinfo(np.uint64).max
        if count < lots.shape[1]:
            negatives &= lots <= np.partition(lots, count - 1, axis=1)[:, count - 1, None]
        return replace(self, candidates=negatives | (self.candidates & self.labels))


@dataclass(frozen=True)
class FixedCandidates:
    """FairnessMethod lists of some of a bucket's users, by user id."""

    user_ids: pa.Array
    title_ids: pa.Array
    """list<string>, a row for each of `user_ids`."""

    @staticmethod
    def of(lake: Lake, bucket: int) -> "FixedCandidates | None":
        """Those of a bucket's users; None where the source fixes none."""
        if "candidates" not in lake.manifest.files:
            return None
        table = lake.read("candidates", bucket)
        return FixedCandidates(table["user_id"].combine_chunks(), table["title_ids"].combine_chunks())


def scoring_chunks(
    bucket: Bucket,
    rows: np.ndarray,
    catalogue: Catalogue,
    fixed: FixedCandidates | None,
    bounds: tuple[datetime, datetime],
) -> Iterator[ScoringChunk]:
    """Chunks of at most `MAX_CELLS` user-title cells over the given users of a bucket.

    Args:
        bucket: read with its `embedding` column.
        rows: users to score.
        catalogue: titles promoted on the day.
        fixed: candidate lists of the source; None = everything offered.
        bounds: [start, end) of the day.
    """
    events = bucket.discoveries(*bounds)
    positive_cells = bucket.event_user[events], bucket.event_title[events]
    earlier = (bucket.event_time >= month_start(bounds[0])) & (bucket.event_time < to_datetime64(bounds[0]))
    seen_cells = bucket.event_user[earlier], bucket.event_title[earlier]
    fixed_cells = _fixed_cells(bucket, catalogue, fixed)
    has_fixed = np.zeros(len(bucket.keys), dtype=bool)
    has_fixed[fixed_cells[0]] = True
    embedding = fixed_width_matrix(bucket.users["embedding"])
    for territory in np.unique(bucket.territory[rows]).tolist():
        offer = catalogue.offers[territory]
        own = rows[bucket.territory[rows] == territory]
        for part in np.array_split(own, -(-len(own) * max(1, len(offer)) // MAX_CELLS)):
            candidates = ~(_cells(part, offer, *seen_cells, len(bucket.keys)) | has_fixed[part, None])
            yield ScoringChunk(
                territory=territory,
                rows=part,
                keys=bucket.keys[part],
                embedding=embedding[part],
                title_index=offer,
                candidates=candidates | _cells(part, offer, *fixed_cells, len(bucket.keys)),
                labels=_cells(part, offer, *positive_cells, len(bucket.keys)),
            )


def _cells(rows: np.ndarray, offer: np.ndarray, user: np.ndarray, title: np.ndarray, num_users: int) -> np.ndarray:
    """(len(rows), len(offer)) bool: is (row, title) among the given (user, title) cells."""
    matrix = np.zeros((len(rows), len(offer)), dtype=bool)
    if len(offer) == 0:
        return matrix
    place = np.full(num_users, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    column = np.searchsorted(offer, title).clip(max=len(offer) - 1)
    inside = (place[user] >= 0) & (offer[column] == title)
    matrix[place[user[inside]], column[inside]] = True
    return matrix


def _fixed_cells(bucket: Bucket, catalogue: Catalogue, fixed: FixedCandidates | None) -> tuple[np.ndarray, np.ndarray]:
    if fixed is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    row_of_list = pc.index_in(fixed.user_ids, value_set=bucket.users["user_id"].combine_chunks())
    here = pc.is_valid(row_of_list)
    lists = fixed.title_ids.filter(here)
    lengths = pc.list_value_length(lists).to_numpy()
    title = pc.index_in(lists.flatten(), value_set=catalogue.title_ids)
    user = np.repeat(row_of_list.filter(here).to_numpy(), lengths)
    known = pc.is_valid(title).to_numpy(zero_copy_only=False)
    return user[known].astype(np.int64), title.filter(pc.is_valid(title)).to_numpy().astype(np.int32)
