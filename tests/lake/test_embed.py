"""Embeddings equal a dense SVD, folds know the past alone or leave out titles, no test day has an influence."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import resource
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.files import write_file
from mtrec_ray.hashing import mix, user_keys
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.config import EmbedConfig, InteractionConfig, LakeConfig, TextConfig
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.inspect import show_lake
from mtrec_ray.lake.interactions import (
    TITLE_POWER,
    USER_POWER,
    InteractionSpace,
    fit_space,
    scale_rows,
    vectors_before,
)
from mtrec_ray.lake.manifest import PROJECTION, Lake
from mtrec_ray.lake.title_text import encode_texts
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import make_plan
from mtrec_ray.streams.reader import read_pairs
from mtrec_ray.streams.scored_users import scoring_chunks
from tests.lake.conftest import verified
from tests.streams.lakes import CALENDAR, day, event_table, lake_of, random_rows, title_table, write_lake

on_ray = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

WIDTH, FOLDS = 6, 3
INTERACTIONS = {"width": WIDTH, "folds": FOLDS, "seed": 4}


def assert_half_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Vectors are stored as float16 and are near one."""
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)


def embed(lake: Lake, **settings) -> Lake:
    document = {"lake": lake.uri, "interactions": INTERACTIONS, "text": {"model": None}} | settings
    embed_lake(EmbedConfig.model_validate(document))
    return Lake.open(lake.uri)


def vectors_of(lake: Lake, column: str = "embedding") -> dict[str, np.ndarray]:
    """User id -> vector, from all buckets."""
    users = lake.read("users")
    return dict(zip(users["user_id"].to_pylist(), fixed_width_matrix(users[column]).astype(np.float64), strict=True))


def bare_lake(folder: Path, num_buckets: int = 4, events: pa.Table | None = None, *, ordered: bool = True) -> Lake:
    users, own, titles = random_rows()
    rows = own if events is None else pa.concat_tables([own, events])
    lake = write_lake(folder, users, rows, titles, num_buckets, embedded=False)
    calendar = CALENDAR.model_copy(update={"ordered": ordered})
    manifest = lake.manifest.model_copy(update={"calendar": calendar})
    write_file(f"{folder}/lake.json", manifest.model_dump_json().encode())
    return Lake.open(lake.uri)


def histories(lake: Lake, until: datetime = CALENDAR.window_end) -> dict[str, np.ndarray]:
    """User id -> (T,) 0/1, watched in the window before a time; read row by row."""
    column = {title: index for index, title in enumerate(lake.titles["title_id"].to_pylist())}
    found = {user: np.zeros(len(column)) for user in lake.read("users")["user_id"].to_pylist()}
    for event in lake.read("events").to_pylist():
        if CALENDAR.window_start <= event["timestamp"] < until:
            found[event["user_id"]][column[event["title_id"]]] = 1
    return found


def dense_space(history: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, w) title vectors and (T, w) projection of histories by `np.linalg.svd`."""
    title_users = history.sum(axis=0)
    column = np.maximum(title_users, 1) ** -TITLE_POWER
    left, singular, right = np.linalg.svd(rows_scaled(history) * column, full_matrices=False)
    singular, right = singular[:width], right[:width].T
    users, titles = left[:, :width] * singular, right * singular
    titles = titles / np.sqrt(np.average(np.square(titles).mean(axis=1), weights=title_users))
    return titles, column[:, None] * right / np.sqrt(np.square(users[history.any(axis=1)]).mean())


def rows_scaled(history: np.ndarray) -> np.ndarray:
    return history / np.maximum(history.sum(axis=1, keepdims=True), 1) ** USER_POWER


def same_signs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """`expected` with the signs of its columns as in `found`."""
    return expected * np.sign((found * expected).sum(axis=0))


def assert_dense_svd(lake: Lake, until: datetime) -> None:
    """The space is that of the window before `until`, users' vectors are of the whole window."""
    history, fitted = histories(lake), np.stack(list(histories(lake, until).values()))
    matrix = np.stack(list(history.values()))
    titles, projection = dense_space(fitted, WIDTH)
    stored = lake.title_embeddings()[:, -WIDTH:].astype(np.float64)
    assert_half_close(stored, same_signs(stored, titles))
    found = np.stack([vectors_of(lake)[user] for user in history])
    users = rows_scaled(matrix) @ projection
    assert_half_close(found, same_signs(found, users))
    assert not found[~matrix.any(axis=1)].any()
    assert np.square(found[matrix.any(axis=1)]).mean() == pytest.approx(1, rel=0.2)


def embedded_start(lake: Lake) -> datetime:
    """End of the events that the space is fitted on."""
    return lake.manifest.embeddings.fold_starts[0]


def vectors_at(lake: Lake, time: datetime) -> dict[str, np.ndarray]:
    """User id -> vector as of `time`."""
    found = {}
    for index in range(lake.manifest.num_buckets):
        bucket = Bucket.read(lake, index, ("embedding",))
        vectors = vectors_before(lake, bucket, time)
        assert vectors.dtype == np.float16
        found |= dict(zip(bucket.users["user_id"].to_pylist(), vectors.astype(np.float64), strict=True))
    return found


@pytest.fixture
def in_process(monkeypatch) -> None:
    for module in ("embed", "inspect"):
        monkeypatch.setattr(f"mtrec_ray.lake.{module}.map_tasks", LocalReader().map)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Lake:
    """Events in their order, so folds by time."""
    return embedded_here(tmp_path_factory.mktemp("embedded") / "lake", ordered=True)


@pytest.fixture(scope="module")
def unordered(tmp_path_factory) -> Lake:
    """Folds by hash."""
    return embedded_here(tmp_path_factory.mktemp("unordered") / "lake", ordered=False)


def embedded_here(folder: Path, *, ordered: bool) -> Lake:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrec_ray.lake.embed.map_tasks", LocalReader().map)
        return embed(bare_lake(folder, ordered=ordered))


@pytest.mark.usefixtures("in_process")
class TestInteractions:
    def test_vectors_equal_a_dense_svd(self, unordered):
        assert_dense_svd(unordered, CALENDAR.window_end)

    def test_vectors_of_an_ordered_lake_equal_a_dense_svd_of_its_history(self, embedded):
        assert_dense_svd(embedded, embedded.manifest.embeddings.fold_starts[0])

    def test_folds_by_time_have_as_many_events_after_a_history(self, embedded, unordered):
        starts = embedded.manifest.embeddings.fold_starts
        assert unordered.manifest.embeddings.fold_starts == []
        times = [t for t in embedded.read("events")["timestamp"].to_pylist() if t < CALENDAR.window_end]
        before = np.array([sum(time < start for time in times) for start in starts]) / len(times)
        np.testing.assert_allclose(before, [0.6, 0.6 + 0.4 / 3, 0.6 + 0.8 / 3], atol=0.02)

    def test_each_fold_by_time_knows_what_came_before_it_and_no_more(self, embedded):
        starts = embedded.manifest.embeddings.fold_starts
        known = [np.stack(list(histories(embedded, start).values())) for start in starts]
        window = histories(embedded)
        _, projection = dense_space(known[0], WIDTH)
        full = np.stack([vectors_of(embedded)[user] for user in window])
        signs = np.sign((full * (rows_scaled(np.stack(list(window.values()))) @ projection)).sum(axis=0))
        stored = vectors_of(embedded, "fold_embeddings")
        for k, history in enumerate(known):
            found = np.stack([stored[user].reshape(FOLDS, WIDTH)[k] for user in window])
            assert_half_close(found, rows_scaled(history) @ (projection * signs))
        assert known[0].sum() < known[1].sum() < known[2].sum() < sum(one.sum() for one in window.values())

    def test_events_after_the_history_leave_title_vectors_equal(self, embedded, tmp_path):
        start = embedded.manifest.embeddings.fold_starts[0]
        users, events, titles = random_rows()
        late = pc.greater_equal(events["timestamp"], pa.scalar(start))
        watched = np.array(events["title_id"].to_pylist(), dtype=object)
        watched[np.array(late)] = "t05"
        other = write_lake(
            tmp_path / "lake", users, events.set_column(1, "title_id", pa.array(watched)), titles, 4, embedded=False
        )
        other = embed(other)
        assert other.manifest.embeddings.fold_starts[0] == start
        assert np.array_equal(other.title_embeddings(), embedded.title_embeddings())
        one, two = vectors_of(embedded, "fold_embeddings"), vectors_of(other, "fold_embeddings")
        for k, same in ((0, True), (FOLDS - 1, False)):
            mine, others = (np.stack([v[u].reshape(FOLDS, WIDTH)[k] for u in one]) for v in (one, two))
            assert np.array_equal(mine, others) == same

    def test_vectors_of_a_later_day_know_the_days_before_it(self, embedded, unordered):
        later = CALENDAR.day_bounds(2)[0]
        history = histories(embedded, later)
        assert np.stack(list(history.values())).sum() > np.stack(list(histories(embedded).values())).sum()
        _, projection = dense_space(np.stack(list(histories(embedded, embedded_start(embedded)).values())), WIDTH)
        expected, found = rows_scaled(np.stack(list(history.values()))) @ projection, vectors_at(embedded, later)
        found = np.stack([found[user] for user in history])
        assert_half_close(found, same_signs(found, expected))
        for lake, time in ((embedded, CALENDAR.window_end), (unordered, later)):
            stored = vectors_of(lake)
            assert all(np.array_equal(vector, stored[user]) for user, vector in vectors_at(lake, time).items())

    def test_later_days_are_trained_on_and_scored_with_their_own_vectors(self, embedded):
        sample = SampleConfig(random_fraction=1.0)
        plan, _ = make_plan(embedded, sample, CALENDAR, num_periods=3, reader=LocalReader())
        for number in (1, 2):
            expected = vectors_at(embedded, CALENDAR.day_bounds(number)[0])
            for index in range(embedded.manifest.num_buckets):
                bucket = Bucket.read(embedded, index, ("embedding",))
                users = bucket.users["user_id"].to_pylist()
                catalogue = Catalogue.of(embedded, *CALENDAR.day_bounds(number))
                for chunk in scoring_chunks(embedded, bucket, np.arange(len(users)), catalogue, None):
                    own = np.stack([expected[users[row]] for row in chunk.rows])
                    np.testing.assert_array_equal(chunk.embedding, own)
                trained = read_pairs(number, index, embedded, None, plan)
                own = np.stack([expected[user] for user in users])
                np.testing.assert_array_equal(trained.vectors[:, 0], own)

    def test_a_lake_without_the_projection_says_what_to_do(self, embedded, tmp_path):
        folder = tmp_path / "lake"
        shutil.copytree(embedded.uri, folder)
        (file,) = embedded.manifest.files_of("titles")
        pq.write_table(pq.read_table(folder / file.path).drop_columns([PROJECTION]), folder / file.path)
        with pytest.raises(UserError, match="was embedded by another version: run `mtrec lake embed` again"):
            vectors_at(Lake.open(str(folder)), CALENDAR.day_bounds(2)[0])

    def test_window_without_a_history_has_folds_by_hash(self, tmp_path):
        """Nearly all events are of its first hour."""
        events = [(user, title, day(2, 1)) for user in "abcd" for title in ("t0", "t1")] + [("a", "t2", day(3, 1))]
        titles = title_table({"t0": [], "t1": [], "t2": []})
        homes = dict.fromkeys("abcd", "north")
        lake = embed(lake_of(tmp_path / "lake", homes, events, titles, embedded=False))
        found = lake.manifest.embeddings
        assert (found.fold_starts, found.num_folds) == ([], FOLDS)
        verified(lake.uri)

    def test_each_fold_by_hash_leaves_out_exactly_its_titles(self, unordered):
        embedded = unordered
        seed, history = INTERACTIONS["seed"], histories(embedded)
        matrix, keys = np.stack(list(history.values())), user_keys(np.array(list(history), dtype=object))
        _, projection = dense_space(matrix, WIDTH)
        fold = np.full(matrix.shape, -1)
        for row, key in enumerate(keys[:, None]):
            titles = np.flatnonzero(matrix[row]).astype(np.uint64)
            dealt = titles[np.argsort(mix(key, "fold", seed, titles))].astype(np.int64)
            fold[row, dealt] = (np.arange(len(dealt)) + int(mix(key, "first fold", seed)[0]) % FOLDS) % FOLDS
        full = np.stack([vectors_of(embedded)[user] for user in history])
        signs = np.sign((full * (rows_scaled(matrix) @ projection)).sum(axis=0))
        stored = vectors_of(embedded, "fold_embeddings")
        for k in range(FOLDS):
            reduced = matrix * (fold != k)
            assert reduced.sum() < matrix.sum()
            expected = rows_scaled(reduced) @ (projection * signs)
            found = np.stack([stored[user].reshape(FOLDS, WIDTH)[k] for user in history])
            assert_half_close(found, expected)

    @pytest.mark.parametrize("num_buckets", [1, 7])
    def test_vectors_do_not_depend_on_the_number_of_buckets(self, embedded, tmp_path, num_buckets):
        other = embed(bare_lake(tmp_path / "lake", num_buckets))
        for column in ("embedding", "fold_embeddings"):
            one, two = vectors_of(embedded, column), vectors_of(other, column)
            assert_half_close(np.stack([two[u] for u in one]), np.stack(list(one.values())))
        assert_half_close(other.title_embeddings(), embedded.title_embeddings())

    def test_events_outside_the_window_have_no_influence(self, embedded, tmp_path):
        later = [(f"u{n}", f"t{n % 30:02d}", day(4, 1 + n % 2)) for n in range(200)]
        before = [(f"u{n}", "t05", day(1, 1).replace(year=2021)) for n in range(50)]
        other = embed(bare_lake(tmp_path / "lake", events=event_table(later + before)))
        assert other.manifest.counts["events"] == embedded.manifest.counts["events"] + 250
        for table in ("users", "titles"):
            assert other.manifest.content_hashes[table] == embedded.manifest.content_hashes[table], table

    def test_earlier_end_of_the_window_equals_a_lake_without_later_events(self, embedded, tmp_path):
        users, events, titles = random_rows()
        early = events.filter(pc.less(events["timestamp"], pa.scalar(day(3, 1, 0))))
        short = embed(bare_lake(tmp_path / "all"), window={"end": "2022-03-01"})
        without = embed(write_lake(tmp_path / "early", users, early, titles, 4, embedded=False))
        assert short.manifest.content_hashes["users"] == without.manifest.content_hashes["users"]
        assert short.manifest.content_hashes["users"] != embedded.manifest.content_hashes["users"]

    def test_catalogue_smaller_than_the_width_gives_zero_columns(self, tmp_path):
        lake = embed(bare_lake(tmp_path / "lake"), interactions=INTERACTIONS | {"width": 40, "folds": 0})
        titles, users = lake.title_embeddings()[:, -40:], np.stack(list(vectors_of(lake).values()))
        assert lake.manifest.embeddings.user_width == lake.manifest.embeddings.interaction_width == 40
        assert titles[:, :30].any(axis=0).all()
        assert users[:, :30].any(axis=0).all()
        assert not titles[:, 30:].any()
        assert not users[:, 30:].any()
        assert lake.manifest.embeddings.num_folds == 0
        assert "fold_embeddings" not in lake.read("users").column_names

    def test_embedded_lake_is_valid_and_records_its_embeddings(self, embedded):
        found = embedded.manifest.embeddings
        verified(embedded.uri)
        assert (found.user_width, found.interaction_width, found.num_folds, found.fold_seed) == (WIDTH, WIDTH, FOLDS, 4)
        assert found.title_width == embedded.title_embeddings().shape[1]
        assert found.description.startswith("titles: interactions; users: interactions")

    def test_bucket_without_users_is_embedded(self, tmp_path):
        events, titles = [("a", "t0", day(1, 2)), ("a", "t1", day(1, 3))], title_table({"t0": [], "t1": []})
        lake = embed(lake_of(tmp_path / "lake", {"a": "north"}, events, titles, 3, embedded=False))
        verified(lake.uri)
        rows = [lake.read("users", bucket)["embedding"] for bucket in range(3)]
        assert sorted(map(len, rows)) == [0, 0, 1]


class TestErrors:
    pytestmark = on_ray

    @pytest.fixture
    def fail_in_bucket_two(self, monkeypatch):
        """Runs the task of bucket 2 by the given function of (task, index, arguments)."""
        from mtrec_ray.lake.embed import _embed_bucket as real

        def patch(run):
            def embed_bucket(index, *arguments):
                return run(real, index, *arguments) if index == 2 else real(index, *arguments)

            monkeypatch.setattr("mtrec_ray.lake.embed._embed_bucket", embed_bucket)

        return patch

    def test_embeddings_are_replaced_only_with_overwrite(self, tmp_path):
        lake = embed(bare_lake(tmp_path / "lake"))
        with pytest.raises(UserError, match="has embeddings already: replace them with --set overwrite=true"):
            embed(lake)
        other = embed(lake, interactions=INTERACTIONS | {"width": 3, "folds": 2}, overwrite=True)
        assert other.manifest.embeddings.user_width == 3
        verified(other.uri)
        (tmp_path / "lake" / "notes.txt").write_text("not of the lake, and not removed")
        assert embed(other, overwrite=True).manifest == lake.manifest
        files = {str(path.relative_to(lake.uri)) for path in Path(lake.uri).rglob("*") if path.is_file()}
        assert files == lake.manifest.listed_paths() | {"notes.txt"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"window": {"start": "2020-01-01", "end": "2020-02-01"}},
                r"no event in .*set window\.start and window\.end",
            ),
            ({"text": {"model": "/nowhere/model"}}, r"'/nowhere/model' cannot be loaded.*--set text\.model=null"),
        ],
    )
    def test_wrong_setting_is_an_error_and_leaves_the_lake_unchanged(self, tmp_path, settings, message):
        lake = bare_lake(tmp_path / "lake")
        before = sorted((tmp_path / "lake").rglob("*"))
        with pytest.raises(UserError, match=message):
            embed(lake, **settings)
        assert sorted((tmp_path / "lake").rglob("*")) == before

    def test_failure_midway_leaves_the_lake_unchanged(self, tmp_path, monkeypatch, fail_in_bucket_two):
        lake = bare_lake(tmp_path / "lake")
        before = (tmp_path / "lake" / "lake.json").read_bytes()

        def full_disk(*_):
            raise OSError(28, "no space left on device")

        fail_in_bucket_two(full_disk)
        with pytest.raises(UserError, match=r"embedding the lake .* failed: no space left"):
            embed(lake)
        assert (tmp_path / "lake" / "lake.json").read_bytes() == before
        assert "embedding" not in Lake.open(lake.uri).read("users").column_names
        verified(lake.uri)
        monkeypatch.undo()
        verified(embed(lake).uri)

    def test_interrupted_write_leaves_the_existing_file_of_the_same_name(self, tmp_path, fail_in_bucket_two):
        """Equal embeddings have files of equal names."""
        lake = embed(bare_lake(tmp_path / "lake"))

        def short_of_space(real, *arguments):
            unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
            try:
                return real(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

        fail_in_bucket_two(short_of_space)
        with pytest.raises(UserError, match=r"failed: .*File too large"):
            embed(lake, overwrite=True)
        verified(lake.uri)


class TestSpace:
    """The decomposition without a lake."""

    HISTORY = np.random.default_rng(3).random((50, 12)) < np.linspace(0.1, 0.6, 12)

    def fit(self) -> InteractionSpace:
        scaled = scale_rows(sp.csr_matrix(self.HISTORY.astype(np.float64)))
        config, num_users = InteractionConfig(width=5), int(self.HISTORY.any(axis=1).sum())
        return fit_space(sp.csr_matrix(scaled.T @ scaled), self.HISTORY.sum(axis=0), num_users, config)

    def test_space_is_a_dense_svd_and_deterministic(self):
        space = self.fit()
        titles, projection = dense_space(self.HISTORY.astype(np.float64), width=5)
        np.testing.assert_allclose(space.title_vectors, same_signs(space.title_vectors, titles), atol=1e-4)
        np.testing.assert_allclose(space.projection, same_signs(space.projection, projection), atol=1e-4)
        assert np.array_equal(space.title_vectors, self.fit().title_vectors)

    def test_directions_without_history_are_zero(self, monkeypatch):
        """Titles that are always watched together span two directions only."""
        twins = np.zeros((40, 12), dtype=bool)
        twins[:20, :6] = twins[20:, 6:] = True
        monkeypatch.setattr(self.__class__, "HISTORY", twins)
        space = self.fit()
        assert np.isfinite(space.projection).all()
        assert not space.title_vectors[:, 2:].any()
        assert not space.projection[:, 2:].any()


@pytest.mark.ray
def test_title_vector_is_text_categories_and_interactions(ray_cluster, minilm, tmp_path):
    homes = {"a": "north", "b": "south", "c": "south"}
    titles = title_table({"t0": [], "t1": ["north"], "t2": []})
    titles = titles.set_column(2, "genres", pa.array(["Crime|Drama", "Crime", None]))
    events = [("a", "t0", day(1, 2)), ("a", "t1", day(1, 2)), ("b", "t2", day(2, 2))]
    lake = lake_of(tmp_path / "lake", homes, events, titles, 2, embedded=False)
    lake = embed(lake, interactions=INTERACTIONS | {"width": 2}, text={"model": minilm})
    vectors = lake.title_embeddings().astype(np.float32)
    text, categories, interactions = np.split(vectors, [384, vectors.shape[1] - 2], axis=1)
    assert categories[:, :2].tolist() == [[1, 1], [1, 0], [0, 0]]
    expected = encode_texts(["t0. Crime|Drama", "t1. Crime", "t2"], TextConfig(model=minilm))
    assert_half_close(text, expected / np.sqrt(np.square(expected).mean()))
    assert interactions.any(axis=1).all()
    assert lake.manifest.embeddings.description.startswith(f"titles: text ({minilm}) | categories | interactions")


@pytest.mark.ray
def test_fine_tuned_text_is_recorded_shown_and_the_same_again(ray_cluster, minilm, tmp_path):
    lake = bare_lake(tmp_path / "lake")
    settings = {"text": {"model": minilm, "fine_tune_steps": 2}, "overwrite": True}
    plain = embed(lake, text={"model": minilm}).title_embeddings()
    steps = []
    document = {"lake": lake.uri, "interactions": INTERACTIONS} | settings
    embed_lake(EmbedConfig.model_validate(document), lambda stage, done, *_: steps.append((stage, done)))
    tuned = Lake.open(lake.uri)
    assert [done for stage, done in steps if stage == "fine-tuning the text encoder"] == [1, 2]
    assert not np.allclose(tuned.title_embeddings()[:, :384], plain[:, :384], atol=1e-2)
    assert np.array_equal(tuned.title_embeddings()[:, 384:], plain[:, 384:])
    how = f"titles: text ({minilm}, fine-tuned: 2 steps of 64 pairs, seed 4) | interactions; users: interactions"
    assert tuned.manifest.embeddings.description == how
    assert how in str(show_lake(LakeConfig(lake=lake.uri))._facts()["embeddings"])
    assert embed(tuned, **settings).manifest == tuned.manifest


@pytest.mark.usefixtures("in_process")
def test_fine_tuning_without_pairs_is_an_error_and_leaves_the_lake_unchanged(minilm, tmp_path):
    events = [("a", "t0", day(1, 2)), ("b", "t1", day(1, 3))]
    titles = title_table({"t0": [], "t1": []})
    lake = lake_of(tmp_path / "lake", {"a": "north", "b": "north"}, events, titles, embedded=False)
    before = sorted((tmp_path / "lake").rglob("*"))
    with pytest.raises(
        UserError, match=r"text\.fine_tune_steps = 2 needs pairs of titles .* or text\.fine_tune_steps=0"
    ):
        embed(lake, text={"model": minilm, "fine_tune_steps": 2})
    assert sorted((tmp_path / "lake").rglob("*")) == before
