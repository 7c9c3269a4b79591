"""References in this process: what they are fitted and chosen on, and their rows in an evaluation."""

import json
import pickle
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.terminal_tables import gain_rich_table, reference_rich_table
from mtrec_ray.hashing import user_keys
from mtrec_ray.jobs import evaluate, reference_choice, reference_counts, references
from mtrec_ray.jobs.config import EvaluateConfig
from mtrec_ray.jobs.reference_counts import ReferenceCounts, ReferenceTask, count_references
from mtrec_ray.jobs.references import known_until
from mtrec_ray.jobs.report import PropensityEvaluation
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PairPlan, make_plan
from mtrec_ray.streams.sampling import TRAIN, VALIDATION, split_of
from mtrec_ray.training.record import load_plan
from tests.jobs import untrained
from tests.jobs.untrained import write_run
from tests.tuning.conftest import build_here

SMALL = {"users": 900, "territories": 4, "titles": 40, "days": 60, "num_evaluation_days": 2, "user_width": 8}
SMALL |= {"title_width": 8, "popularity_spread": 2.0}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return build_here(tmp_path_factory.mktemp("referenced") / "lake", 3, **SMALL)


def map_read_only(function: Callable[..., Any], items: Any, *shared: Any, **_: Any) -> Iterator[tuple[Any, Any]]:
    """`map_tasks` in this process; as Ray's, what goes into a task and comes out of it is read-only."""

    def sent(value: Any) -> Any:
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])

    shared = sent(shared)
    for item in items:
        yield item, sent(function(item, *shared))


@pytest.fixture
def here(monkeypatch) -> None:
    for module in (evaluate, references):
        monkeypatch.setattr(module, "map_tasks", map_read_only)
    monkeypatch.setattr(evaluate, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(untrained, "make_plan", lambda *settings: make_plan(*settings, reader=LocalReader()))


def evaluate_here(*runs: str, **settings) -> PropensityEvaluation:
    document = {"runs": list(runs), "num_bootstrap": 10, "num_titles": 0} | settings
    return evaluate.evaluate_propensity(validate_config(EvaluateConfig, document))


def catalogues_of(lake: Lake) -> list[list[np.ndarray]]:
    """Titles offered by territory, in the window and on each day after it."""
    calendar = lake.manifest.calendar
    return [Catalogue.of(lake, *calendar.day_bounds(day)).offers for day in (0, 1, 2)]


def plan_of(lake: Lake, runs: Path, **sample) -> PairPlan:
    return load_plan(write_run(lake, runs, "planned", 0, sample=sample), PairPlan)


def counts_of(lake: Lake, plan: PairPlan, **changes) -> ReferenceCounts:
    calendar = plan.calendar
    catalogues = {day: Catalogue.of(lake, *calendar.day_bounds(day)) for day in (0, 1, 2)}
    settings = {
        "known_until": known_until([plan], [1, 2]),
        "recent": {"popularity-7d": 7},
        "kept": np.ones(lake.titles.num_rows, dtype=bool),
        "by_territory": True,
        "tuning_rate": 1.0,
        "ials_rate": 1.0,
        "num_negatives": None,
    }
    task = ReferenceTask(lake, plan, catalogues, **settings | changes)
    first, *others = [count_references(index, task) for index in range(lake.manifest.num_buckets)]
    for other in others:
        first.merge(other)
    return first


def events_of(lake: Lake, sample: SampleConfig, wanted: int) -> Any:
    """Events of the users of one split, with territory and title as indices."""
    users, events = lake.read("users").to_pandas(), lake.read("events").to_pandas()
    users = users[split_of(user_keys(users["user_id"].to_numpy()), sample) == wanted]
    found = events.merge(users[["user_id", "territory"]], on="user_id")
    found["territory"] = found["territory"].map(lake.territory_names().index)
    return found.assign(title=found["title_id"].map({title: i for i, title in enumerate(lake.title_ids.to_pylist())}))


def between(events: Any, start: datetime, end: datetime) -> Any:
    return events[(events["timestamp"] >= start) & (events["timestamp"] < end)]


def gram_of(lake: Lake, events: Any) -> np.ndarray:
    pairs = events[["user_id", "title"]].drop_duplicates().assign(one=1)
    watched = pairs.pivot(index="user_id", columns="title", values="one").fillna(0)
    watched = watched.reindex(columns=range(lake.titles.num_rows), fill_value=0).to_numpy()
    return watched.T @ watched


@pytest.mark.usefixtures("here")
class TestCounts:
    def test_titles_in_common_are_of_training_users_in_the_window(self, lake, tmp_path):
        plan = plan_of(lake, tmp_path, validation_fraction=0.2)
        counts, window = counts_of(lake, plan), plan.calendar.day_bounds(0)
        events = between(events_of(lake, plan.sample, TRAIN), *window)
        for territory, gram in enumerate(counts.grams):
            expected = gram_of(lake, events[events["territory"] == territory])
            np.testing.assert_array_equal(gram.toarray(), expected)
        np.testing.assert_array_equal((counts.histories.T @ counts.histories).toarray(), gram_of(lake, events))
        assert not counts.tuned_grams
        assert not counts.choice_popularity

    def test_popularity_of_the_last_days_ends_where_the_runs_knowledge_does(self, lake, tmp_path):
        plan = plan_of(lake, tmp_path)
        window_end = plan.calendar.day_bounds(0)[1]
        assert known_until([plan], [1, 2]) == {1: window_end, 2: window_end}
        incremental = plan.model_copy(update={"periods": plan.periods * 2})
        assert known_until([plan, incremental], [1, 2]) == {1: window_end, 2: plan.calendar.day_bounds(1)[1]}
        counts, events = counts_of(lake, incremental), events_of(lake, plan.sample, TRAIN)
        for until in (window_end, plan.calendar.day_bounds(1)[1]):
            first = events.assign(month=events["timestamp"].dt.strftime("%Y-%m")).sort_values("timestamp")
            first = first.drop_duplicates(["user_id", "title", "month"])  # discoveries
            own = between(first, until - timedelta(days=7), until)
            expected = np.zeros((4, lake.titles.num_rows), dtype=np.int64)
            np.add.at(expected, (own["territory"], own["title"]), 1)
            np.testing.assert_array_equal(counts.recent["popularity-7d", until], expected)

    def test_validation_users_are_chosen_on_as_test_users_are_scored(self, lake, tmp_path):
        plan = plan_of(lake, tmp_path, validation_fraction=0.2)
        chunks, events = counts_of(lake, plan).chunks, events_of(lake, plan.sample, VALIDATION)
        users = lake.read("users").to_pandas()["user_id"].to_numpy()
        keys = user_keys(users)
        for day in (1, 2):
            of_day = [chunk.users for chunk in chunks if chunk.day == day]
            found = np.concatenate([chunk.keys for chunk in of_day])
            assert set(found) == set(keys[split_of(keys, plan.sample) == VALIDATION])
            for chunk in of_day:
                window = between(events, *plan.calendar.day_bounds(0))
                known = window[["user_id", "title"]].drop_duplicates().groupby("user_id").size()
                expected = [known.get(users[keys == key][0], 0) for key in chunk.keys]
                assert chunk.history is not None
                np.testing.assert_array_equal(np.diff(chunk.history.indptr), expected)

    def test_without_validation_users_last_discoveries_of_training_users_are_held_out(self, lake, tmp_path):
        plan = plan_of(lake, tmp_path)
        counts, window = counts_of(lake, plan, tuning_rate=0.5), plan.calendar.day_bounds(0)
        events = between(events_of(lake, plan.sample, TRAIN), *window)
        keys = dict(zip(user_keys(events["user_id"].unique()), events["user_id"].unique(), strict=True))
        chosen = []
        for chunk in (chunk.users for chunk in counts.chunks):
            for row, key in enumerate(chunk.keys):
                own = events[events["user_id"] == keys[key]].sort_values("timestamp")
                own = own.assign(month=own["timestamp"].dt.month).drop_duplicates(["title", "month"])
                held = max(1, int(0.2 * len(own)))
                assert chunk.history is not None
                assert set(chunk.title_index[chunk.labels[row]]) == set(own["title"][len(own) - held :])
                assert set(chunk.history[[row]].nonzero()[1]) == set(own["title"][: len(own) - held])
                chosen.append(keys[key])
        assert 0.3 < len(chosen) / events["user_id"].nunique() < 0.7
        tuned = events[events["user_id"].isin(chosen)]
        for territory, gram in enumerate(counts.tuned_grams):
            np.testing.assert_array_equal(gram.toarray(), gram_of(lake, tuned[tuned["territory"] == territory]))
        others = events[~events["user_id"].isin(chosen)]
        assert counts.choice_popularity["popularity"].sum() == len(
            others.assign(month=others["timestamp"].dt.month).drop_duplicates(["user_id", "title", "month"])
        )
        left = counts.histories[~counts.tuned]
        np.testing.assert_array_equal((left.T @ left).toarray(), gram_of(lake, others))

    def test_users_with_fixed_candidates_are_chosen_on_with_lists_as_long(self, lake, tmp_path, monkeypatch):
        listed = lake.territory_names()[0]

        def read_lists(lake: Lake, index: int) -> pa.Table:
            users = lake.read("users", index).to_pandas()
            users = users[users["territory"] == listed]["user_id"]
            return pa.table({"user_id": users.tolist(), "title_ids": [["a", "b", "c", "d"]] * len(users)})

        monkeypatch.setattr(reference_counts, "read_candidates", read_lists)
        for chunk in (chunk.users for chunk in counts_of(lake, plan_of(lake, tmp_path)).chunks):
            negatives = (chunk.candidates & ~chunk.labels).sum(axis=1)
            assert (negatives == 4).all() == (chunk.territory == 0)


@pytest.mark.usefixtures("here")
class TestEvaluation:
    def test_references_are_rows_and_their_settings_are_in_the_document(self, lake, tmp_path, monkeypatch):
        monkeypatch.setitem(reference_choice.GRIDS, "ials", {"factors": (4,), "alpha": (2, 1), "regularization": (1,)})
        names = ["popularity", "popularity-30d", "popularity-7d", "item-knn", "item-knn-own", "ease", "ials", "prior"]
        if not references.find_spec("implicit"):
            names.remove("ials")
        run = write_run(lake, tmp_path, "random", 0, sample={"validation_fraction": 0.2})
        evaluation = evaluate_here(run)
        assert evaluation.report.variants == ["random", *names]  # 60 days have no popularity of the last 90
        document = json.loads(json.dumps(evaluation.document(), allow_nan=False))
        assert list(document["references"]) == names
        chosen = document["references"]["ease"]
        assert chosen["penalty"] in reference_choice.GRIDS["ease"]["penalty"]
        assert {*reference_choice.BLEND_GRID, "popularity", "chosen_on"} < set(chosen)
        found = document["territory_metrics"]["held_out"]
        value = {name: found[name]["average"]["mean"]["pr_auc"]["value"] for name in ["random", *names]}
        fitted = [name for name in names if name != "prior"]  # an untrained run's prior is zero
        assert min(value[name] for name in fitted) > 1.3 * value["random"]
        assert reference_rich_table(evaluation.report).row_count == 1 + len(names)
        assert gain_rich_table(evaluation.report).columns[-1].header == "popularity"

    def test_a_lake_without_validation_users_chooses_on_training_users(self, lake, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(references, "find_spec", lambda name: None)
        monkeypatch.setattr(references, "MAX_TITLES", 30)
        monkeypatch.setattr(references, "MAX_OWN_CELLS", 100)
        evaluation = evaluate_here(write_run(lake, tmp_path, "random", 0), num_negatives=5)
        assert evaluation.report.variants[1:] == ["popularity", "popularity-30d", "popularity-7d", "item-knn", "prior"]
        chosen_on = evaluation.document()["references"]["item-knn"]["chosen_on"]
        assert chosen_on["users"].startswith("training")
        assert "no ials: pip install 'mtrec_ray[references]'" in caplog.text
        assert "no ease: 40 titles, at most 30; item-knn knows the most popular" in caplog.text
        assert "no item-knn-own" in caplog.text

    def test_more_negatives_than_titles_are_said(self, lake, tmp_path):
        """Of a few territories in the tables, of all before work."""
        offered = [max(map(len, offers)) for offers in zip(*catalogues_of(lake), strict=True)]
        run, names = write_run(lake, tmp_path, "random", 0), lake.territory_names()
        fewest, most = min(offered), max(offered)
        assert fewest < most
        listed = ", ".join(f"{name} ({count})" for name, count in zip(names, offered, strict=True) if count == fewest)
        expected = f"all titles are ranked where fewer than {fewest} negatives are offered: {listed}"
        assert expected in evaluate_here(run, num_negatives=fewest, references=False).report.notes
        assert not any("all titles" in note for note in evaluate_here(run, references=False).report.notes)
        with pytest.raises(UserError, match=f"num_negatives = {most}: no territory offers more than {most} titles"):
            evaluate_here(run, num_negatives=most)

    @pytest.mark.parametrize("names", [["ease"], ["item-knn-s0", "item-knn-s1"]])
    def test_the_name_of_a_reference_is_refused_before_work(self, lake, tmp_path, monkeypatch, names):
        runs = [write_run(lake, tmp_path, name, seed) for seed, name in enumerate(names)]
        monkeypatch.setattr(evaluate, "map_tasks", None)
        with pytest.raises(UserError, match=r"has the name of a reference: rename its folder, or set references=false"):
            evaluate_here(*runs)
