"""From a lake to training batches of labelled pairs.

1. `Schedule.segments`: which slots of which buckets this worker reads, in order       (no data)
2. `read_pairs`, `read_segment`: a bucket's pairs, and one segment's rows of them      (Ray Data task)
3. `worker_steps`: the rows of each global step                                        (Ray Data, order preserved)
4. `collate_pairs`: one `StepRows` per global step                                     (worker process)

A row is one user with all its labelled titles, so an embedding travels once. Each eligible (user, title) becomes a
negative independently, by a hash of user and seed (paper A, 3.2 and 4.1, leaves the draw open).

Legend: `S` sampled users of the bucket, `P` labelled pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.columns import fixed_width_column, fixed_width_matrix
from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.lake.bucket import Bucket, Catalogue, pair_code, to_datetime64
from mtrec_ray.lake.interactions import fold_of_pairs, vectors_before
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import CLUSTER, Reader, worker_steps
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.prior import Prior
from mtrec_ray.streams.sampling import sampled_users
from mtrec_ray.streams.schedule import Schedule, Segment


@dataclass(frozen=True)
class StepRows:
    """What one worker trains on in one global step: U rows with P pairs."""

    step: int
    embedding: np.ndarray  # (U, user_width) float16
    territory: np.ndarray  # (U,) int32
    offsets: np.ndarray  # (U + 1,) int64: pairs of row u are offsets[u]:offsets[u + 1]
    title_index: np.ndarray  # (P,) int32
    label: np.ndarray  # (P,) bool
    prior: np.ndarray  # (P,) float16, see `streams.prior`; 0 without one

    @property
    def num_examples(self) -> int:
        """Labelled pairs."""
        return len(self.label)


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs, sorted by user row."""

    user_row: np.ndarray  # (P,) int64 row in the bucket's users
    title_index: np.ndarray  # (P,) int32
    time: np.ndarray  # (P,) datetime64[us] of the discovery; NaT = negative

    @property
    def label(self) -> np.ndarray:
        """(P,) bool: True = positive."""
        return ~np.isnat(self.time)


@dataclass(frozen=True)
class BucketPairs:
    """One bucket's sampled users and labelled pairs in one period, the same in all epochs."""

    bucket: Bucket
    rows: np.ndarray  # (S,) sampled users
    pairs: Pairs
    prior: np.ndarray  # (P,) float16
    slot_of_pair: np.ndarray  # (P,) slot of each pair before the epoch's order: sampled user * folds + fold
    vectors: np.ndarray  # (N, folds, user_width) float16


def read_pairs(period_index: int, bucket_index: int, lake: Lake, prior: Prior | None, plan: PairPlan) -> BucketPairs:
    """Read a bucket, sample its users and draw its pairs."""
    period, embeddings = plan.periods[period_index], lake.manifest.embeddings
    folds = period.rows_per_user
    column = "fold_embeddings" if folds > 1 else "embedding"
    catalogue = Catalogue.of(lake, period.start, period.end)
    bucket = Bucket.read(lake, bucket_index, (column,))
    rows, _ = sampled_users(bucket, plan.sample, plan.calendar, np.array(plan.added_rates))
    salt = int(mix(np.array([plan.sample.seed], dtype=np.uint64), "phase", period.day)[0])
    pairs = labelled_pairs(bucket, rows, catalogue, period.negative_rate, salt)
    times = pairs.time
    if period_index == 0:
        draws = uniforms(bucket.keys[pairs.user_row], "offered", salt, pairs.title_index.astype(np.uint64))
        times = np.where(pairs.label, times, period.times(draws))
    known = np.zeros(len(times), np.float16)
    if prior is not None:
        if embeddings.interaction_width:  # the vector holds a watched title, which is no prediction of it
            kept = prior.unseen(bucket, period_index, pairs.user_row, pairs.title_index, times)
            pairs, times = Pairs(pairs.user_row[kept], pairs.title_index[kept], pairs.time[kept]), times[kept]
        known = prior.of_pairs(bucket, period_index, pairs.user_row, pairs.title_index, times)
    slot_of_pair = np.searchsorted(rows, pairs.user_row)
    if folds > 1:
        if embeddings.fold_starts:
            starts = np.array([to_datetime64(start) for start in embeddings.fold_starts])
            fold = (np.searchsorted(starts, times, side="right") - 1).clip(min=0)
        else:
            start, end = embeddings.window_start, embeddings.window_end
            assert start is not None, "an embedding with folds records its window"
            assert end is not None
            fold = fold_of_pairs(bucket, (start, end), pairs.user_row, pairs.title_index, folds, embeddings.fold_seed)
        slot_of_pair = slot_of_pair * folds + fold
    vectors = fixed_width_matrix(bucket.users[column]) if folds > 1 else vectors_before(lake, bucket, period.start)
    vectors = vectors.reshape(len(bucket.keys), folds, -1)
    return BucketPairs(bucket, rows, pairs, known, slot_of_pair, vectors)


def read_segment(
    segment: Segment,
    lake: Lake,
    plan: PairPlan,
    prior: Prior | None,
    from_step: int,
    seed: int,
    reader: Reader = CLUSTER,
) -> pa.Table:
    """Rows of one segment that have pairs and belong to `from_step` or later, in slot order.

    Columns: `lane`, `step`, `territory` int32, `title_index` list<int32>, `label` list<bool>, `prior`
    list<float16>, `embedding` FixedSizeBinary.
    """
    period = plan.periods[segment.period]
    folds = period.rows_per_user
    found = reader.bucket(read_pairs, segment.period, segment.bucket, lake, prior, plan)
    keys = found.bucket.keys[found.rows]  # (S,)
    fold = np.arange(folds, dtype=np.uint64)
    draws = mix(keys[:, None], "slot order", seed, segment.period, segment.epoch, fold)
    order = np.argsort(draws.ravel(), kind="stable")  # (S * folds,) slots in the order of this epoch
    wanted, steps = segment.slots_and_steps(from_step)
    slots = order[wanted]
    taken, counts = _pairs_of_slots(found.slot_of_pair, slots, len(order))
    used = counts > 0
    offsets = np.concatenate([[0], np.cumsum(counts[used])]).astype(np.int32)
    slots, users = slots[used], slots[used] // folds
    vectors = found.vectors[found.rows[users], slots % folds]  # (rows, user_width)
    return pa.table(
        {
            "lane": np.full(len(slots), segment.lane, dtype=np.int32),
            "step": steps[used].astype(np.int32),
            "territory": found.bucket.territory[found.rows[users]],
            "title_index": pa.ListArray.from_arrays(offsets, found.pairs.title_index[taken]),
            "label": pa.ListArray.from_arrays(offsets, found.pairs.label[taken]),
            "prior": pa.ListArray.from_arrays(offsets, pa.array(found.prior[taken])),
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
    reader: Reader = CLUSTER,
    prior: Prior | None = None,
) -> Iterator[StepRows]:
    """One worker's rows of every global step from `from_step` to the end."""
    shared = {"lake": lake, "plan": plan, "prior": prior}
    steps = worker_steps(read_segment, schedule, rank, num_workers, from_step, reader, **shared)
    for step, tables in steps:
        yield collate_pairs(step, tables, lake.manifest.embeddings.user_width)


def collate_pairs(step: int, tables: list[pa.Table], user_width: int) -> StepRows:
    """Join the rows of one step, which may be none."""
    if not tables:
        empty = np.zeros(0, dtype=np.int32)
        vectors, offsets = np.zeros((0, user_width), np.float16), np.zeros(1, np.int64)
        return StepRows(step, vectors, empty, offsets, empty, np.zeros(0, bool), np.zeros(0, np.float16))
    table = pa.concat_tables(tables).combine_chunks()
    titles, labels = table["title_index"].chunk(0), table["label"].chunk(0)
    return StepRows(
        step=step,
        embedding=fixed_width_matrix(table["embedding"]),
        territory=table["territory"].to_numpy(),
        offsets=titles.offsets.to_numpy().astype(np.int64) - titles.offsets[0].as_py(),
        title_index=titles.flatten().to_numpy(),
        label=labels.flatten().to_numpy(zero_copy_only=False),
        prior=table["prior"].chunk(0).flatten().to_numpy(),
    )


def _pairs_of_slots(slot_of_pair: np.ndarray, slots: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair indices in the order of the wanted slots, and the number of pairs of each slot."""
    rank = np.full(num_slots, -1, dtype=np.int64)
    rank[slots] = np.arange(len(slots))
    rank_of_pair = rank[slot_of_pair]
    taken = np.flatnonzero(rank_of_pair >= 0)
    counts = np.bincount(rank_of_pair[taken], minlength=len(slots))
    return taken[np.argsort(rank_of_pair[taken], kind="stable")], counts


def labelled_pairs(bucket: Bucket, rows: np.ndarray, catalogue: Catalogue, negative_rate: float, salt: int) -> Pairs:
    """Positives and negatives of the sampled users, (S,) rows, in the catalogue's period.

    An eligible title becomes a negative with probability `negative_rate`; `salt` is the period's seed.
    """
    events = bucket.discoveries(*catalogue.bounds, catalogue.offer_mask)
    events = events[np.isin(bucket.event_user[events], rows)]
    users, titles = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]  # of possible negatives
    for territory in np.unique(bucket.territory[rows]):
        offer = catalogue.offers[territory]
        own = rows[bucket.territory[rows] == territory]
        which, position = bernoulli_positions(bucket.keys[own], len(offer), negative_rate, salt)
        users.append(own[which])
        titles.append(offer[position])
    drawn_user, drawn_title = np.concatenate(users), np.concatenate(titles)
    eligible = ~np.isin(pair_code(drawn_user, drawn_title), bucket.known_pairs(*catalogue.bounds))
    user_row = np.concatenate([bucket.event_user[events], drawn_user[eligible]])
    title_index = np.concatenate([bucket.event_title[events], drawn_title[eligible]])
    time = np.full(len(user_row), np.datetime64("NaT"), bucket.event_time.dtype)
    time[: len(events)] = bucket.event_time[events]
    order = np.argsort(user_row, kind="stable")
    return Pairs(user_row[order], title_index[order], time[order])


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
