"""`mtrec lake embed`: embeddings for a lake whose source has none.

A title's vector is [text | categories | interactions], a user's is [interactions]: the discoveries of the training
window, decomposed (`interactions`); the mean of a transformer's last token vectors (paper A, 3.1), which is fine-tuned
first if the settings say so (`title_pairs`), both scaled to unit mean square; the most frequent values of the
categorical columns, 0 or 1. All is computed anew at each call: vectors of two calls are in different spaces, and a
model trained on the ones does not fit the others.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import Any

import numpy as np
import scipy.sparse as sp

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import EmbedConfig, InteractionConfig
from mtrec_ray.lake.inspect import LakeSummary
from mtrec_ray.lake.interactions import (
    Bounds,
    InteractionSpace,
    count_events,
    count_histories,
    fit_space,
    fold_starts,
    fold_vectors,
    user_vectors,
)
from mtrec_ray.lake.manifest import PROJECTION, Lake, LakeFile, Manifest, bucket_folder
from mtrec_ray.lake.title_pairs import (
    PAIRS_PER_BATCH,
    TextPair,
    TitlePairs,
    batches_without_repeats,
    sample_title_pairs,
)
from mtrec_ray.lake.title_text import check_text, encode_texts, title_texts
from mtrec_ray.lake.write import replace_files, write_failure, write_lock, write_parquet
from mtrec_ray.sources.source import Embeddings

MAX_CATEGORIES = 64


def embed_lake(config: EmbedConfig, progress: ProgressCallback | None = None) -> LakeSummary:
    """Compute and commit embeddings from the events of the training window alone."""
    uri = Lake.open(config.lake).uri
    try:
        with write_lock(uri):
            lake = Lake.open(uri)
            bounds = config.window.resolve(lake.manifest.calendar).day_bounds(0)
            present = lake.manifest.embeddings
            if (present.user_width or present.title_width) and not config.overwrite:
                raise UserError(f"lake {config.lake!r} has embeddings already: replace them with --set overwrite=true")
            check_text(title_texts(lake.titles), config.text)
            folders = ("users/", "titles/")
            manifest = replace_files(uri, lambda: _write_embeddings(lake, config, bounds, progress), folders)
    except OSError as error:
        raise write_failure(error, f"embedding the lake {config.lake!r}") from error
    return LakeSummary(config.lake, manifest)


def _write_embeddings(lake: Lake, config: EmbedConfig, bounds: Bounds, progress: ProgressCallback | None) -> Manifest:
    """Write the new files beside the old ones; returns the manifest that lists them."""
    interactions = config.interactions
    starts = _fold_starts(lake, interactions, bounds, progress)
    fitted = (bounds[0], starts[0].item().replace(tzinfo=UTC)) if len(starts) else bounds
    space, title_users = _interaction_space(lake, interactions, fitted, progress)
    pairs = _text_pairs(lake, config, fitted, title_users, progress)
    titles, blocks = _title_matrix(lake, config, space, pairs, progress)
    rows = lake.titles.append_column("embedding", fixed_width_column(titles))
    if len(starts):
        rows = rows.append_column(PROJECTION, fixed_width_column(space.projection, np.float32))
    title_file = write_parquet(lake.uri, "titles", rows)
    buckets = range(lake.manifest.num_buckets)
    arguments = (lake, space.projection, bounds, interactions, starts)
    users = dict(map_tasks(_embed_bucket, buckets, *arguments, stage="writing users", progress=progress))
    embeddings = Embeddings(
        user_width=interactions.width,
        title_width=titles.shape[1],
        interaction_width=interactions.width,
        num_folds=interactions.folds,
        fold_starts=[start.replace(tzinfo=UTC) for start in starts.tolist()],
        fold_seed=interactions.seed,
        window_start=bounds[0],
        window_end=bounds[1],
        description=f"titles: {' | '.join(blocks)}; users: interactions",
    )
    files = lake.manifest.files | {"users": [users[bucket] for bucket in buckets], "titles": [title_file]}
    return lake.manifest.model_copy(update={"embeddings": embeddings, "files": files})


def _fold_starts(
    lake: Lake, config: InteractionConfig, bounds: Bounds, progress: ProgressCallback | None
) -> np.ndarray:
    """(K,) datetime64[us] starts of folds by time.

    None without folds, an order of time, or events before the first fold.
    """
    if not config.folds or not lake.manifest.calendar.ordered:
        return np.empty(0, "datetime64[us]")
    buckets = range(lake.manifest.num_buckets)
    counted = map_tasks(count_events, buckets, lake, bounds, stage="counting events", progress=progress)
    events = np.sum([found for _, found in counted], axis=0)
    return fold_starts(bounds, events, config.folds)


def _interaction_space(
    lake: Lake, config: InteractionConfig, bounds: Bounds, progress: ProgressCallback | None
) -> tuple[InteractionSpace, np.ndarray]:
    """The space, and the users of each title within `bounds`, (T,)."""
    num_titles = lake.titles.num_rows
    gram, title_users, num_users = sp.csr_matrix((num_titles, num_titles)), np.zeros(num_titles), 0
    buckets = range(lake.manifest.num_buckets)
    parts = map_tasks(count_histories, buckets, lake, bounds, stage="reading histories", progress=progress)
    for bucket_gram, bucket_titles, bucket_users in _in_order(parts):
        gram, title_users, num_users = gram + bucket_gram, title_users + bucket_titles, num_users + bucket_users
    if title_users.sum() == 0:
        window = f"[{bounds[0]}, {bounds[1]})"
        raise UserError(f"lake {lake.uri!r} holds no event in {window}: set window.start and window.end")
    return fit_space(sp.csr_matrix(gram), title_users, num_users, config), title_users


def _text_pairs(
    lake: Lake, config: EmbedConfig, bounds: Bounds, title_users: np.ndarray, progress: ProgressCallback | None
) -> list[TextPair]:
    """Texts of titles that a user watched within `bounds`, to fine-tune the encoder on."""
    steps, seed = config.text.fine_tune_steps, config.interactions.seed
    if not steps:
        return []
    texts, max_pairs = title_texts(lake.titles), steps * PAIRS_PER_BATCH
    users_with_text = np.where([bool(text) for text in texts], title_users, 0)
    arguments = (lake, bounds, users_with_text, max_pairs, seed)
    found, buckets = TitlePairs.none(), range(lake.manifest.num_buckets)
    for _, part in map_tasks(sample_title_pairs, buckets, *arguments, stage="sampling title pairs", progress=progress):
        found = found.merge(part, max_pairs)
    pairs = [(texts[one], texts[other]) for one, other in found.shuffled(seed).tolist() if texts[one] != texts[other]]
    if len(next(batches_without_repeats(pairs), [])) < 2:
        window = f"[{bounds[0]}, {bounds[1]})"
        raise UserError(
            f"text.fine_tune_steps = {steps} needs pairs of titles with text that a user watched in {window}, and at "
            "least four different titles: set window.start and window.end, or text.fine_tune_steps=0"
        )
    return pairs


def _in_order(parts: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """Results in the order of their buckets, so that a float sum is the same at every run."""
    waiting, expected = {}, 0
    for index, part in parts:
        waiting[index] = part
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def _embed_bucket(
    index: int, lake: Lake, projection: np.ndarray, bounds: Bounds, config: InteractionConfig, starts: np.ndarray
) -> LakeFile:
    users, bucket = lake.read("users", index, without=["embedding", "fold_embeddings"]), Bucket.read(lake, index)
    events = np.flatnonzero(within(bucket.event_time, *bounds))
    users = users.append_column("embedding", fixed_width_column(user_vectors(bucket, events, projection)))
    if config.folds:
        folds = fold_vectors(bucket, bounds, projection, config.folds, config.seed, starts)
        users = users.append_column("fold_embeddings", fixed_width_column(folds))
    return write_parquet(lake.uri, bucket_folder("users", index), users, compression="none")


def _title_matrix(
    lake: Lake, config: EmbedConfig, space: InteractionSpace, pairs: list[TextPair], progress: ProgressCallback | None
) -> tuple[np.ndarray, list[str]]:
    """(T, title_width) float32 and the names of its blocks of columns."""
    blocks, names = [], []
    texts = title_texts(lake.titles)
    if config.text.model and any(texts):
        encoded = encode_texts(texts, config.text, pairs, config.interactions.seed, progress)
        blocks.append(encoded / np.sqrt(np.square(encoded[encoded.any(axis=1)]).mean()))
        steps, seed = config.text.fine_tune_steps, config.interactions.seed
        tuned = f", fine-tuned: {steps} steps of {PAIRS_PER_BATCH} pairs, seed {seed}" if steps else ""
        names.append(f"text ({config.text.model}{tuned})")
    categories = _categories(lake)
    if categories:
        blocks.append(np.array(categories, dtype=np.float32).T)
        names.append("categories")
    return np.concatenate([*blocks, space.title_vectors], axis=1), [*names, "interactions"]


def _categories(lake: Lake) -> list[list[float]]:
    """(columns, T) 0/1: the MAX_CATEGORIES most frequent genres and values of each column.

    Where a title is offered is not a feature: a source may know an offer only from its test days.
    """
    columns = []
    for name in ("genres", *lake.manifest.title_categoricals):
        texts = lake.titles[name].to_pylist()
        values = [re.split(r"[\s|,]+", text or "") if name == "genres" else [text] for text in texts]
        counts = Counter(value for listed in values for value in listed if value)
        frequent = sorted(counts, key=lambda value: (-counts[value], value))[:MAX_CATEGORIES]
        columns += [[float(value in listed) for listed in values] for value in frequent]
    return columns
