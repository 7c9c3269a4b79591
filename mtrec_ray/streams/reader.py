"""From a lake to training batches.

1. `Schedule.segments`: which slots of which buckets this worker reads, in order   (no data)
2. `read_pairs`, `read_segment`: a bucket's pairs, and one segment's rows of them    (Ray Data task)
3. `stream_segments`:   blocks of rows in schedule order                           (Ray Data, order preserved)
4. `rows_by_step`, `collate`: one `StepRows` per global step                       (worker process)

A row is one user with all its labelled titles, so an embedding travels once and not once per pair.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.columns import fixed_width_column, fixed_width_matrix
from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.interactions import fold_of_pairs
from mtrec_ray.lake.manifest import Embeddings, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.ordered import StreamSegments, rows_by_step, stream_segments
from mtrec_ray.streams.pairs import Pairs, labelled_pairs
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.sampling import sampled_users
from mtrec_ray.streams.schedule import Schedule, Segment, lanes_of_worker


@dataclass(frozen=True)
class StepRows:
    """What one worker trains on in one global step; U rows, P pairs."""

    step: int
    embedding: np.ndarray
    """(U, user_width) float16."""
    territory: np.ndarray
    """(U,) int32."""
    offsets: np.ndarray
    """(U + 1,) int64: pairs of row u are offsets[u]:offsets[u + 1]."""
    title_index: np.ndarray
    """(P,) int32."""
    label: np.ndarray
    """(P,) bool."""


@dataclass(frozen=True)
class BucketPairs:
    """One bucket's sampled users with their labelled pairs in one period: what all its epochs have in common."""

    bucket: Bucket
    rows: np.ndarray
    """(S,) sampled users."""
    pairs: Pairs
    slot_of_pair: np.ndarray
    """(P,) slot of each pair before the epoch's order."""
    vectors: np.ndarray
    """(N, folds, user_width) float16."""


ReadPairs = Callable[[int, int, Lake, PairPlan], BucketPairs]


def read_pairs(period_index: int, bucket_index: int, lake: Lake, plan: PairPlan) -> BucketPairs:
    """Read a bucket, sample its users and draw its pairs."""
    period = plan.periods[period_index]
    folds = period.num_folds
    column = "fold_embeddings" if folds > 1 else "embedding"
    catalogue = Catalogue.of(lake, period.start, period.end)
    bucket = Bucket.read(lake, bucket_index, catalogue.title_ids, (column,))
    rows, _ = sampled_users(bucket, plan.sample, plan.calendar, np.array(plan.added_rates))
    salt = int(mix(np.array([plan.sample.seed], dtype=np.uint64), "phase", period.day)[0])
    pairs = labelled_pairs(bucket, rows, catalogue, (period.start, period.end), period.negative_rate, salt)
    slot_of_pair = _slots(bucket, rows, pairs, folds, lake.manifest.embeddings)
    vectors = fixed_width_matrix(bucket.users[column]).reshape(len(bucket.keys), folds, -1)
    return BucketPairs(bucket, rows, pairs, slot_of_pair, vectors)


def read_segment(
    segment: Segment, lake: Lake, plan: PairPlan, from_step: int, seed: int, read: ReadPairs = read_pairs
) -> pa.Table:
    """Rows of one segment that have pairs and belong to `from_step` or later, in slot order.

    Columns: `lane`, `step`, `territory` int32, `title_index` list<int32>, `label` list<bool>, `embedding`
    FixedSizeBinary. `read` may cache `read_pairs`.
    """
    period = plan.periods[segment.period]
    folds = period.num_folds
    found = read(segment.period, segment.bucket, lake, plan)
    bucket, rows = found.bucket, found.rows
    order = _slot_order(bucket, rows, folds, segment, seed)
    wanted = np.arange(segment.start, segment.stop)
    steps = segment.steps(wanted)
    wanted, steps = wanted[steps >= from_step], steps[steps >= from_step]
    offsets, taken = _group_pairs(found.slot_of_pair, order[wanted], len(rows) * folds)
    used = np.diff(offsets) > 0
    slots = order[wanted][used]
    offsets = np.concatenate([[0], np.cumsum(np.diff(offsets)[used])])
    vectors = found.vectors[rows[slots // folds], slots % folds]  # (S, user_width)
    if period.cold_fraction:
        fold = (slots % folds).astype(np.uint64)
        draws = uniforms(bucket.keys[rows[slots // folds]], "cold", seed, segment.epoch, fold)
        vectors[draws < period.cold_fraction, -lake.manifest.embeddings.interaction_width :] = 0
    return pa.table(
        {
            "lane": np.full(len(slots), segment.lane, dtype=np.int32),
            "step": steps[used].astype(np.int32),
            "territory": bucket.territory[rows[slots // folds]],
            "title_index": pa.ListArray.from_arrays(offsets.astype(np.int32), found.pairs.title_index[taken]),
            "label": pa.ListArray.from_arrays(offsets.astype(np.int32), found.pairs.label[taken]),
            "embedding": fixed_width_column(vectors),
        }
    )


def training_batches(
    lake: Lake,
    plan: PairPlan,
    schedule: Schedule,
    rank: int,
    num_workers: int,
    from_step: int = 0,
    stream: StreamSegments = stream_segments,
) -> Iterator[StepRows]:
    """One worker's share of every global step from `from_step` to the end; `stream` reads ahead, or here."""
    lanes = lanes_of_worker(rank, num_workers, schedule.lanes)
    lanes &= {segment.lane for segment in schedule.segments(lanes, from_step)}  # a tiny lake leaves lanes without rows
    segments = schedule.segments(lanes, from_step)
    shared = {"lake": lake, "plan": plan, "from_step": from_step, "seed": schedule.seed}
    blocks = stream(read_segment, segments, len(segments), **shared)
    for step, rows in rows_by_step(blocks, lanes, range(from_step, schedule.num_steps)):
        yield collate(step, rows, lake.manifest.embeddings.user_width)


def _slots(bucket: Bucket, rows: np.ndarray, pairs: Pairs, folds: int, embeddings: Embeddings) -> np.ndarray:
    """(P,) slot of each pair before the epoch's order: sampled user * folds + fold."""
    sampled = np.searchsorted(rows, pairs.user_row)
    if folds == 1:
        return sampled
    assert embeddings.window_start is not None, "folds come with the window they were dealt in"
    assert embeddings.window_end is not None, "folds come with the window they were dealt in"
    bounds = embeddings.window_start, embeddings.window_end
    return sampled * folds + fold_of_pairs(
        bucket, bounds, pairs.user_row, pairs.title_index, folds, embeddings.fold_seed
    )


def _slot_order(bucket: Bucket, rows: np.ndarray, folds: int, segment: Segment, seed: int) -> np.ndarray:
    """(S * folds,) slots in the order of this epoch."""
    fold = np.arange(folds, dtype=np.uint64)
    draws = mix(bucket.keys[rows, None], "slot order", seed, segment.period, segment.epoch, fold)
    return np.argsort(draws.ravel(), kind="stable")


def _group_pairs(slot_of_pair: np.ndarray, slots: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """CSR of the pairs of each wanted slot: offsets (len(slots) + 1,), pair indices."""
    by_slot = np.argsort(slot_of_pair, kind="stable")
    counts = np.bincount(slot_of_pair, minlength=num_slots)
    starts = np.cumsum(counts) - counts
    offsets = np.concatenate([[0], np.cumsum(counts[slots])])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts[slots])
    return offsets, by_slot[np.repeat(starts[slots], counts[slots]) + within]


def collate(step: int, parts: list[pa.Table], user_width: int) -> StepRows:
    """The rows of one step, none included."""
    if not parts:
        empty = np.zeros(0, dtype=np.int32)
        return StepRows(
            step, np.zeros((0, user_width), np.float16), empty, np.zeros(1, np.int64), empty, np.zeros(0, bool)
        )
    table = pa.concat_tables(parts).combine_chunks()
    titles, labels = table["title_index"].chunk(0), table["label"].chunk(0)
    return StepRows(
        step=step,
        embedding=fixed_width_matrix(table["embedding"]),
        territory=table["territory"].to_numpy(),
        offsets=titles.offsets.to_numpy().astype(np.int64) - titles.offsets[0].as_py(),
        title_index=titles.flatten().to_numpy(),
        label=labels.flatten().to_numpy(zero_copy_only=False),
    )
