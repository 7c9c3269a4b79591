"""Evaluation of untrained runs against scikit-learn on all scores, references, empty territories, refused runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.state import EvaluationResult
from mtrec_ray.hashing import user_keys
from mtrec_ray.jobs.config import EvaluateConfig
from mtrec_ray.jobs.evaluate import evaluate_propensity
from mtrec_ray.jobs.report import PropensityEvaluation
from mtrec_ray.jobs.shards import HELD_OUT, TRAINED, VALIDATED, own_day
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.sampling import TEST, split_of
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot
from tests.jobs.untrained import write_run
from tests.tuning.conftest import build_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 900, "territories": 9, "size_exponent": 2.5, "titles": 40, "user_width": 8, "title_width": 8}
SYNTHETIC |= {"popularity_spread": 2.0, "taste_scale": 0.3, "num_evaluation_days": 2}
SYNTHETIC |= {"first_day": "2022-01-10"}  # within a month: what was seen before them matters
EVERYONE = {"test_fraction": 0.0, "active_fraction": 0.0}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return build_here(tmp_path_factory.mktemp("evaluated") / "lake", 3, **SYNTHETIC)


@pytest.fixture(scope="module")
def runs(lake, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(lake, folder, f"random-s{seed}", seed) for seed in (0, 1)]


def evaluate(*runs: str, **settings) -> PropensityEvaluation:
    return evaluate_propensity(EvaluateConfig.model_validate({"runs": list(runs), "num_bootstrap": 20} | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("report") / "out"


@pytest.fixture(scope="module")
def evaluation(runs, folder) -> PropensityEvaluation:
    return evaluate(*runs, out=str(folder))


def result_of(evaluation: PropensityEvaluation, run: str, day: int = 1, cohort: str = HELD_OUT) -> EvaluationResult:
    return next(one for one in evaluation.report.runs if one.name == run).results[day, cohort]


@pytest.fixture(scope="module")
def averages(evaluation) -> dict[str, dict]:
    """Variant -> territory -> metric, average over days."""
    found = evaluation.document()["territory_metrics"][HELD_OUT]
    return {variant: of["average"] for variant, of in found.items()}


def scores_and_labels(lake: Lake, record: PropensityRecord, day: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(territory, scores, labels) of each test user, from the plain tables, one user at a time."""
    calendar, titles = lake.manifest.calendar, lake.titles.to_pandas()
    start, end = calendar.day_bounds(day)
    users, events = lake.read("users").to_pandas(), lake.read("events").to_pandas()
    split = split_of(user_keys(users["user_id"].to_numpy()), record.config.sample)
    model, names = load_snapshot(record, 0), lake.territory_names()
    title_vectors = model.title_vectors(torch.from_numpy(lake.title_embeddings().astype(np.float32)))
    features = torch.from_numpy(fixed_width_matrix(lake.read("users")["embedding"]).astype(np.float32))
    month = pd.Timestamp(start).replace(day=1, hour=0)
    for row in np.flatnonzero(split == TEST):
        user, territory = users["user_id"][row], users["territory"][row]
        own = events[events["user_id"] == user]
        before = set(own["title_id"][(own["timestamp"] >= month) & (own["timestamp"] < start)])
        today = set(own["title_id"][(own["timestamp"] >= start) & (own["timestamp"] < end)])
        offered = [len(where) == 0 or territory in where for where in titles["territories"]]
        candidates = np.flatnonzero(np.array(offered) & ~titles["title_id"].isin(before))
        group = torch.tensor([record.groups.of_territory[names.index(territory)]])
        logits = model.logits(model.user_vectors(features[row : row + 1], group), title_vectors)[0].numpy()
        yield territory, logits[candidates], titles["title_id"][candidates].isin(today).to_numpy()


@pytest.mark.parametrize("day", [1, 2])
def test_pr_auc_is_that_of_sklearn_on_all_scores(lake, runs, evaluation, day):
    record = PropensityRecord.load(runs[1])
    result = result_of(evaluation, record.config.name, day)
    pr_auc = result.metrics["pr_auc"]
    found: dict[str, list] = {name: [] for name in lake.territory_names()}
    for territory, scores, labels in scores_and_labels(lake, record, day):
        found[territory].append((scores, labels))
    without = 0
    for index, rows in enumerate(found.values()):
        scores, labels = (np.concatenate([row[part] for row in rows] or [np.zeros(0)]) for part in (0, 1))
        assert result.counts["num_users"][index] == len(rows)
        assert result.counts["num_candidates"][index] == len(scores)
        assert result.counts["num_positives"][index] == labels.sum()
        if not labels.sum():
            without += 1
            assert np.isnan(pr_auc[index, 0])
            continue
        wanted = average_precision_score(labels, scores)
        low, high = (result.metrics[f"pr_auc_{side}_bound"][index, 0] for side in ("lower", "upper"))
        assert low - 1e-9 <= wanted <= high + 1e-9
        assert high - low < 0.02
        assert pr_auc[index, 0] == pytest.approx(wanted, abs=high - low + 1e-9)
    assert without >= 1
    everyone = [row for rows in found.values() for row in rows]
    wanted = average_precision_score(*(np.concatenate([row[part] for row in everyone]) for part in (1, 0)))
    assert pr_auc[-1, 0] == pytest.approx(wanted, abs=2e-3)


def test_popularity_beats_a_random_model_where_titles_differ_in_popularity(averages):
    assert list(averages)[:2] == ["random", "popularity"]
    popular, random = averages["popularity"]["all"], averages["random"]["all"]
    assert popular["pr_auc"]["value"] > 1.5 * random["pr_auc"]["value"]
    assert popular["pr_auc_gain"]["value"] > 50


def test_runs_that_differ_in_the_seed_are_averaged(evaluation, averages):
    assert sorted({run.seed for run in evaluation.report.runs}) == [0, 1]
    results = [result_of(evaluation, f"random-s{seed}", day) for seed in (0, 1) for day in (1, 2)]
    days = [result.metrics["pr_auc"][-1, 0] for result in results]
    assert len(set(days)) == 4
    assert averages["random"]["all"]["pr_auc"]["value"] == pytest.approx(np.mean(days))


def test_a_territory_without_positives_is_null_with_a_note_never_zero(lake, evaluation, averages):
    counts = evaluation.report.counts("num_positives")[:-1]
    empty = [name for name, count in zip(lake.territory_names(), counts, strict=True) if count == 0]
    assert empty
    for name in empty:
        for found in (averages["random"][name]["pr_auc"], averages["popularity"][name]["pr_auc_gain"]):
            assert found == {"value": None, "note": "no positives"}
    others = set(lake.territory_names()) - set(empty)
    assert None not in [averages["random"][name]["pr_auc"]["value"] for name in others]
    json.dumps(evaluation.document(), allow_nan=False)


def test_files_hold_the_document_and_tables(evaluation, folder):
    csv = ["popularity_bias", "territory_counts", "territory_metrics", "title_metrics", "title_scores"]
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", *(f"{name}.csv" for name in csv)]
    scores: Any = pd.read_csv(folder / "title_scores.csv")
    assert len(set(scores["title"])) == min(4, len(evaluation.report.titles)) > 0
    assert min(scores.groupby(["title", "variant"])["users"].sum().tolist()) > 0
    assert json.loads((folder / "metrics.json").read_text()) == evaluation.document()
    table = pd.read_csv(folder / "territory_metrics.csv", dtype={"day": str}, float_precision="round_trip")
    pd.testing.assert_frame_equal(table.fillna(""), evaluation.metrics.fillna(""), check_dtype=False)
    assert len(evaluation.tables()) == 4


def test_a_document_names_weights_and_protocol(lake, runs, evaluation, tmp_path):
    other = write_run(lake, tmp_path, "other", 0, model={"d": 8}, sample={"validation_fraction": 0.3})
    alone = evaluate(other, num_negatives=9, validation=True, references=False).document()
    assert alone["protocol"] == {"num_negatives": 9, "cohort": "validation"}
    document = evaluation.document()
    assert document["version"] == 1
    assert document["protocol"] == {"num_negatives": None, "cohort": "held_out"}
    named = {name: (run["variant"], run["seed"]) for name, run in document["runs"].items()}
    assert named == {"random-s0": ("random", 0), "random-s1": ("random", 1)}
    hashes = [run["weights_hash"] for run in [*document["runs"].values(), *alone["runs"].values()]]
    assert hashes == [PropensityRecord.load(uri).weights_hash() for uri in [*runs, other]]
    assert len(set(hashes)) == 3


def test_reported_titles_are_local_and_global_ones_of_one_territory(lake, runs):
    few = evaluate(runs[0], num_titles=6, references=False)
    report, result = few.report, result_of(few, "random-s0")
    assert report.variants == ["random"]
    assert report.title_is_local.tolist().count(True) == len(report.titles) / 2 >= 1
    assert report.title_territory in lake.territory_names()
    users, events = lake.read("users").to_pandas(), lake.read("events").to_pandas()
    split = split_of(user_keys(users["user_id"].to_numpy()), PropensityRecord.load(runs[0]).config.sample)
    chosen = users["user_id"][(split == TEST) & (users["territory"] == report.title_territory)]
    start, _ = lake.manifest.calendar.day_bounds(1)
    events = events[events["user_id"].isin(chosen) & (events["timestamp"] >= start)]
    names = dict(zip(lake.titles["title_id"].to_pylist(), lake.titles["name"].to_pylist(), strict=True))
    found = events["title_id"].map(lambda title: names[title] or title).value_counts()
    for title, positives in zip(report.titles, report.counts("title_positives"), strict=True):
        assert 0 < positives <= found[title]  # the rest was seen before in that month
    assert result.title_histograms.sum(axis=(1, 2)).max() <= len(chosen)


def test_each_day_has_test_users_of_its_own_where_they_suffice(lake, runs, evaluation, monkeypatch):
    document = evaluation.document()
    assert not document["own_users_each_day"]
    (note,) = document["notes"]
    assert note.startswith("all days have the same test users: of its own, day")
    assert note.endswith("with a positive, fewer than 100")
    everybody = result_of(evaluation, "random-s0", 1).counts["num_users"]
    np.testing.assert_array_equal(result_of(evaluation, "random-s0", 2).counts["num_users"], everybody)
    monkeypatch.setattr("mtrec_ray.jobs.day_positives.MIN_DAY_USERS", 1)
    own = evaluate(*runs)
    assert own.document()["own_users_each_day"]
    assert own.document()["notes"] == ["each day has test users of its own"]
    of_days = [result_of(own, "random-s0", day).counts["num_users"] for day in (1, 2)]
    np.testing.assert_array_equal(sum(of_days), everybody)
    sample = PropensityRecord.load(runs[0]).config.sample
    keys = user_keys(lake.read("users")["user_id"].to_numpy())
    days = own_day(keys[split_of(keys, sample) == TEST], sample, 2)
    assert [counts[-1] for counts in of_days] == [(days == day).sum() for day in (1, 2)]
    assert 0.35 < (days == 1).mean() < 0.65
    positives = own.report.counts("num_positives")[-1]
    assert 0 < positives < evaluation.report.counts("num_positives")[-1]


def test_gains_are_over_every_baseline_or_those_named(lake, runs, tmp_path):
    base = [write_run(lake, tmp_path, f"base-s{seed}", seed, kind="baseline") for seed in (0, 1)]
    settings: dict = {"kind": "baseline", "sample": {"active_fraction": 0.0}}
    alone = [write_run(lake, tmp_path, f"alone-s{seed}", seed, **settings) for seed in (0, 1)]
    assert evaluate(*runs, *alone, *base, num_titles=0).report.baselines == ["random", "alone", "base"]
    assert evaluate(*base, *runs, num_titles=0).report.baselines == ["base"]
    named = evaluate(*runs, baselines=["popularity"], num_titles=0)
    document = named.document()
    assert document["baseline"] == "popularity"
    assert document["territory_metrics"][HELD_OUT]["random"]["average"]["all"]["pr_auc_gain"]["value"] < 0
    assert "pr_auc_gain" not in document["territory_metrics"][HELD_OUT]["popularity"]["average"]["all"]
    with pytest.raises(UserError, match="baselines: 'none' is not evaluated: name some of random, popularity"):
        evaluate(*runs, baselines=["none"])


def test_validation_scores_the_validation_users(lake, tmp_path):
    run = write_run(lake, tmp_path, "v", 0, sample={"validation_fraction": 0.3})
    validation, test = (evaluate(run, validation=value, references=False) for value in (True, False))
    assert (validation.report.cohorts, test.report.cohorts) == ([VALIDATED], [HELD_OUT])
    sizes = [result_of(e, "v", 1, e.report.cohorts[0]).counts["num_users"][-1] for e in (validation, test)]
    assert sizes[0] == pytest.approx(0.3 * 900, rel=0.2)
    assert sizes[1] == pytest.approx(0.2 * 900, rel=0.25)


def test_without_test_users_those_trained_on_are_scored(lake, tmp_path):
    run = write_run(lake, tmp_path, "t", 0, sample=EVERYONE)
    evaluation = evaluate(run)
    assert evaluation.report.cohorts == [TRAINED]
    plan = json.loads((tmp_path / "t" / "plan.json").read_text())
    assert result_of(evaluation, "t", 1, TRAINED).counts["num_users"][-1] == sum(plan["random_users"])


def test_references_are_scored_on_the_trained_users_of_each_seed(lake, tmp_path):
    runs = [write_run(lake, tmp_path, f"t-s{seed}", seed, sample=EVERYONE | {"seed": seed}) for seed in (0, 1)]
    evaluation = evaluate(*runs)
    users = [result_of(evaluation, f"t-s{seed}", 1, TRAINED).counts["num_users"][-1] for seed in (0, 1)]
    references = [run.name for run in evaluation.report.runs if run.variant == "popularity"]
    assert [result_of(evaluation, scorer, 1, TRAINED).counts["num_users"][-1] for scorer in references] == users
    assert len(set(users)) == 2
    assert evaluation.report.variants[:2] == ["t", "popularity"]


def test_a_snapshot_is_loaded_once_for_all_days_and_no_reported_titles_give_no_title_table(runs, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "mtrec_ray.jobs.evaluate.load_snapshot", lambda *which: loaded.append(which) or load_snapshot(*which)
    )
    found = evaluate(*runs, references=False, num_titles=0)
    assert {day for day, _ in found.report.runs[0].results} == {1, 2}
    assert len(loaded) == len(runs)
    assert "title_metrics" not in found.document()


def test_a_moved_run_is_evaluated(runs, evaluation, tmp_path, monkeypatch):
    shutil.copytree(runs[0], tmp_path / "elsewhere" / "random-s0")
    monkeypatch.chdir(tmp_path)
    hidden = Path(runs[0]).with_name("hidden")
    Path(runs[0]).rename(hidden)
    try:
        moved = evaluate("elsewhere/random-s0/", references=False)
    finally:
        hidden.rename(runs[0])
    before, after = (result_of(one, "random-s0").metrics["pr_auc"] for one in (evaluation, moved))
    np.testing.assert_array_equal(after, before)


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "settings", "message"),
        [
            (["nowhere"], {}, r"no run at .*nowhere.*mtrec train propensity"),
            (["random-s0", "random-s0"], {}, "different names, got random-s0, random-s0"),
            (["random-s0"], {"validation": True}, "the runs have no validation users"),
        ],
    )
    def test_runs_that_cannot_be_evaluated_are_refused(self, runs, names, settings, message):
        with pytest.raises(UserError, match=message):
            evaluate(*(str(Path(runs[0]).with_name(name)) for name in names), **settings)

    @pytest.mark.parametrize(
        ("update", "message"),
        [
            ({"status": "training"}, "odd' is not finished"),
            ({"lake_hash": "0" * 64}, "has changed since run 'odd' was started"),
        ],
    )
    def test_an_unfinished_run_and_one_of_another_lake_are_refused(self, lake, tmp_path, update, message):
        run = write_run(lake, tmp_path, "odd", 0)
        PropensityRecord.load(run).model_copy(update=update).save()
        with pytest.raises(UserError, match=message):
            evaluate(run)

    @pytest.mark.parametrize(
        "settings",
        [{"sample": {"split_seed": 1}}, {"sample": {"test_fraction": 0.3}}, {"window": {"num_evaluation_days": 1}}],
        ids=["seed of the split", "test users", "days"],
    )
    def test_runs_with_other_test_users_or_days_are_refused(self, lake, runs, tmp_path, settings):
        other = write_run(lake, tmp_path, "other", 0, **settings)
        with pytest.raises(UserError, match="'other' and run 'random-s0' differ in lake, window or user split"):
            evaluate(runs[0], other)

    def test_runs_of_one_seed_that_were_trained_on_different_users_are_refused(self, lake, tmp_path):
        runs = [write_run(lake, tmp_path, f"f{f}", 0, sample=EVERYONE | {"random_fraction": f}) for f in (0.4, 0.5)]
        with pytest.raises(UserError, match=r"'f0\.4' and 'f0\.5' of seed 0 differ in sample\.seed or sample\.random"):
            evaluate(*runs)

    def test_variants_whose_seeds_cannot_be_paired_are_refused(self, lake, runs, tmp_path, monkeypatch):
        monkeypatch.setattr("mtrec_ray.jobs.evaluate.map_tasks", None)
        other = write_run(lake, tmp_path, "other", 0, model={"d": 8})
        with pytest.raises(UserError, match="give each variant the same distinct seeds"):
            evaluate(*runs, other, references=False)

    def test_the_name_of_a_reference_and_no_evaluation_day_are_refused(self, lake, tmp_path):
        run = write_run(lake, tmp_path, "popularity", 0)
        with pytest.raises(UserError, match="'popularity' has the name of a reference"):
            evaluate(run)
        assert evaluate(run, references=False).report.variants == ["popularity"]
        with pytest.raises(UserError, match=r"no evaluation day: set window\.num_evaluation_days"):
            evaluate(write_run(lake, tmp_path, "none", 0, window={"num_evaluation_days": 0}))

    def test_missing_and_damaged_weights_are_refused(self, lake, tmp_path):
        run = write_run(lake, tmp_path, "broken", 0)
        weights = Path(run, "snapshots", "day_0", "model.safetensors")
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(UserError, match=r"the weights .*day_0/model.safetensors' are damaged"):
            evaluate(run)
        weights.unlink()
        with pytest.raises(UserError, match=r"no weights at .*day_0/model.safetensors' yet"):
            evaluate(run)
