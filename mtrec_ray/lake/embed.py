"""`mtrec lake embed`: representations for a lake whose source brings none (paper A takes them from upstream models).

1. count and decompose who discovered what in the training window   (`interactions`, bucket tasks; no test day)
2. title text through a transformer                                  (`text`, Ray Data)
3. the most frequent values of the categorical columns
4. new users files with `embedding` and `fold_embeddings`, a new titles file
5. commit: `lake.json` names the new files, then the old ones go

A title's vector is [text | categories | interactions], a user's is [interactions]; text and interactions are scaled to
unit mean square, categories are 0 or 1.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

import numpy as np
import pyarrow.fs as pafs
import scipy.sparse as sp

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, resolve, write_file
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.embed_config import EmbedConfig, InteractionConfig
from mtrec_ray.lake.interactions import (
    InteractionSpace,
    fit_space,
    fold_vectors,
    history_matrix,
    scale_rows,
    user_vectors,
)
from mtrec_ray.lake.manifest import MANIFEST_NAME, Embeddings, Lake, LakeFile, Manifest, bucket_folder
from mtrec_ray.lake.text import encode_texts, title_texts
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.lake.write import write_parquet, writing_failed

Bounds = tuple[datetime, datetime]
Part = tuple[sp.csr_matrix, np.ndarray, int]
"""Title x title matrix, users of each title, users with a history."""


def embed_lake(config: EmbedConfig, progress: ProgressCallback | None = None) -> Manifest:
    """Compute and commit the embeddings of a lake from its training window; no event outside the window counts.

    Args:
        config: what to compute.
        progress: told of finished buckets.

    Raises:
        UserError: the lake has embeddings already, holds no event in the window, nothing would be computed, or the
            files cannot be written.
    """
    lake = Lake.open(config.lake)
    bounds = resolve_calendar(lake, config.window).day_bounds(0)
    present = lake.manifest.embeddings
    if (present.user_width or present.title_width) and not config.overwrite:
        raise UserError(f"lake {config.lake!r} has embeddings already: replace them with --set overwrite=true")
    if config.interactions.width == 0:
        raise UserError("interactions.width = 0 leaves users without any vector: set it above 0")
    try:
        manifest = _write_embeddings(lake, config, bounds, progress)
        write_file(join(lake.uri, MANIFEST_NAME), manifest.model_dump_json(indent=1).encode())
    except OSError as error:
        raise writing_failed(error, f"embedding the lake {config.lake!r}") from error
    finally:
        _remove_unlisted(lake.uri)
    return manifest


def _write_embeddings(lake: Lake, config: EmbedConfig, bounds: Bounds, progress: ProgressCallback | None) -> Manifest:
    """Write the new files beside the old ones; the manifest that would make them the lake's."""
    space = _interaction_space(lake, config.interactions, bounds, progress)
    titles, parts = _title_matrix(lake, config, space)
    fs, root = resolve(lake.uri)
    title_file = write_parquet(fs, root, "titles", lake.titles.append_column("embedding", fixed_width_column(titles)))
    num_buckets = lake.manifest.num_buckets
    arguments = (lake, space, bounds, config.interactions)
    users = dict(map_tasks(_embed_bucket, range(num_buckets), *arguments, stage="writing users", progress=progress))
    embeddings = Embeddings(
        user_width=config.interactions.width,
        title_width=titles.shape[1],
        interaction_width=config.interactions.width,
        num_folds=config.interactions.folds,
        fold_seed=config.interactions.seed,
        window_start=bounds[0],
        window_end=bounds[1],
        description=f"titles: {' | '.join(parts)}; users: interactions",
    )
    files = {"users": [users[bucket] for bucket in range(num_buckets)], "titles": [title_file]}
    return lake.manifest.model_copy(update={"embeddings": embeddings, "files": lake.manifest.files | files})


def _interaction_space(
    lake: Lake, config: InteractionConfig, bounds: Bounds, progress: ProgressCallback | None
) -> InteractionSpace:
    num_titles = lake.titles.num_rows
    gram, title_users, num_users = sp.csr_matrix((num_titles, num_titles)), np.zeros(num_titles), 0
    buckets = range(lake.manifest.num_buckets)
    arguments = (lake, bounds, config.user_power)
    parts = map_tasks(_count_bucket, buckets, *arguments, stage="reading histories", progress=progress)
    for bucket_gram, bucket_titles, bucket_users in _in_order(parts):
        gram, title_users, num_users = gram + bucket_gram, title_users + bucket_titles, num_users + bucket_users
    if title_users.sum() == 0:
        raise UserError(
            f"lake {lake.uri!r} holds no event in [{bounds[0]}, {bounds[1]}): set window.start and window.end"
        )
    return fit_space(sp.csr_matrix(gram), title_users, num_users, config)


def _in_order(parts: Iterable[tuple[int, Part]]) -> Iterator[Part]:
    """Results in the order of their buckets, so that a float sum is the same at every run; few have to wait."""
    waiting: dict[int, Part] = {}
    expected = 0
    for index, part in parts:
        waiting[index] = part
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def _count_bucket(index: int, lake: Lake, bounds: Bounds, user_power: float) -> Part:
    bucket = Bucket.read(lake, index, lake.titles["title_id"].combine_chunks())
    events = np.flatnonzero(within(bucket.event_time, *bounds))
    shape = (len(bucket.keys), lake.titles.num_rows)
    history = history_matrix(bucket.event_user[events], bucket.event_title[events], shape)
    scaled = scale_rows(history, user_power)
    num_users = int((np.diff(history.indptr) > 0).sum())
    return sp.csr_matrix(scaled.T @ scaled), np.asarray(history.sum(axis=0)).ravel(), num_users


def _embed_bucket(
    index: int, lake: Lake, space: InteractionSpace, bounds: Bounds, config: InteractionConfig
) -> LakeFile:
    users = lake.read("users", index)
    users = users.drop_columns([c for c in ("embedding", "fold_embeddings") if c in users.column_names])
    bucket = Bucket.read(lake, index, lake.titles["title_id"].combine_chunks())
    events = np.flatnonzero(within(bucket.event_time, *bounds))
    users = users.append_column("embedding", fixed_width_column(user_vectors(bucket, events, space)))
    if config.folds:
        folds = fold_vectors(bucket, bounds, space, config.folds, config.seed)
        users = users.append_column("fold_embeddings", fixed_width_column(folds.reshape(len(folds), -1)))
    fs, root = resolve(lake.uri)
    return write_parquet(fs, root, bucket_folder("users", index), users, compression="none")


def _title_matrix(lake: Lake, config: EmbedConfig, space: InteractionSpace) -> tuple[np.ndarray, list[str]]:
    """(T, title_width) float32 and the names of its parts."""
    blocks, names = [], []
    texts = title_texts(lake.titles)
    if config.text.model and any(texts):
        encoded = encode_texts(texts, config.text)
        blocks.append(encoded / np.sqrt(np.square(encoded[encoded.any(axis=1)]).mean()))
        names.append(f"text ({config.text.model})")
    categories = _categories(lake, config.max_categories)
    if categories.shape[1]:
        blocks.append(categories)
        names.append("categories")
    return np.concatenate([*blocks, space.title_vectors], axis=1), [*names, "interactions"]


def _categories(lake: Lake, limit: int) -> np.ndarray:
    """(T, columns) 0/1: the most frequent genres and values of each categorical column.

    Where a title is offered is not a feature: a source may know an offer only from its test days.
    """
    columns = []
    for name in ("genres", *lake.manifest.title_categoricals):
        values = [_words(value) if name == "genres" else [value] for value in lake.titles[name].to_pylist()]
        counts = Counter(word for words in values for word in words if word)
        kept = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]
        columns += [[float(word in words) for words in values] for word in kept]
    return np.array(columns, dtype=np.float32).T if columns else np.zeros((lake.titles.num_rows, 0), dtype=np.float32)


def _words(genres: str | None) -> list[str]:
    return (genres or "").replace("|", " ").replace(",", " ").split()


def _remove_unlisted(uri: str) -> None:
    """Remove the files that the lake no longer lists: the replaced ones, or those of an embed that failed."""
    fs, root = resolve(uri)
    listed = {file.path for files in Lake.open(uri).manifest.files.values() for file in files}
    for table in ("users", "titles"):
        for info in fs.get_file_info(pafs.FileSelector(f"{root}/{table}", recursive=True)):
            if info.is_file and info.path[len(root) + 1 :] not in listed:
                fs.delete_file(info.path)
