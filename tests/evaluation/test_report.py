"""The report: gains and their pairing, notes; tidy tables, CSV files and document agree; terminal tables."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.table import Table
from rich.text import Text

from mtrec_ray.evaluation import tables as output
from mtrec_ray.evaluation import terminal_tables as terminal
from mtrec_ray.evaluation.intervals import interval, nan_mean, relative_gain
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport, row_labels
from mtrec_ray.evaluation.state import EvaluationState
from mtrec_ray.evaluation.tables import TABLE_KEYS
from mtrec_ray.evaluation.terminal_tables import gain_rich_table
from tests.evaluation.simulated import DAY_TITLES, SETTINGS, chunks, state
from tests.processes import printed

TERRITORIES, TITLES = ["FR", "DE", "XX"], ["Local Hero", "World"]


def run(variant: str, noise: float, seed: int = 0, cohorts=("trained", "held_out"), days=(1, 2)) -> EvaluatedRun:
    results = {
        (day, cohort): state(day + 10 * c, noise, seed + sum(map(ord, variant))).summarise()
        for c, cohort in enumerate(cohorts)
        for day in days
    }
    return EvaluatedRun(variant, results, seed)


@pytest.fixture(scope="module")
def runs() -> list[EvaluatedRun]:
    return [run("baseline", 3.0), run("mtl", 0.2)]


@pytest.fixture(scope="module")
def report(runs) -> EvaluationReport:
    return EvaluationReport(runs, TERRITORIES, TITLES)


@pytest.fixture(scope="module")
def tables(report) -> dict[str, pd.DataFrame]:
    return output.evaluation_tables(report)


@pytest.fixture(scope="module")
def document(tables) -> dict[str, Any]:
    return json.loads(json.dumps(output.evaluation_document(tables, "baseline"), allow_nan=False))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["all"], ["all (territory)"]),
        (["mean", "DE", "all"], ["mean (territory)", "DE", "all (territory)"]),
        (["all", "all (territory)"], ["all (territory) (territory)", "all (territory)"]),
    ],
)
def test_territories_with_the_name_of_a_mean_have_rows_of_their_own(names, labels):
    assert row_labels(names) == labels


def test_territories_called_all_and_mean_have_the_figures_of_other_names(runs, report):
    named = EvaluationReport(runs, ["all", "DE", "mean"], ["local_mean", "World"])
    for metric in ("pr_auc", "title_pr_auc"):
        found, expected = (one.intervals(metric, "mtl") for one in (named, report))
        np.testing.assert_array_equal(list(found.values()), list(expected.values()))
    assert {"all (territory)", "mean (territory)", "all", "mean"} < set(named.row_names("pr_auc"))
    tables = output.evaluation_tables(named)
    assert {name: len(table) for name, table in tables.items()} == {
        name: len(table) for name, table in output.evaluation_tables(report).items()
    }


def test_the_document_nests_every_metric_by_cohort_variant_day_and_territory(document, runs):
    found, result = document["territory_metrics"]["trained"]["baseline"], runs[0].results
    assert found["1"]["FR"]["pr_auc"]["value"] == result[1, "trained"].metrics["pr_auc"][0, 0]
    average = found["average"]["FR"]["pr_auc"]
    assert average["value"] == pytest.approx(np.mean([result[d, "trained"].metrics["pr_auc"][0, 0] for d in (1, 2)]))
    assert average["low"] < average["value"] < average["high"]
    bounds = (found["average"]["FR"][f"pr_auc_{side}_bound"]["value"] for side in ("lower", "upper"))
    assert next(bounds) <= average["value"] <= next(bounds)
    macro, other = found["average"]["mean"]["pr_auc"]["value"], found["average"]["DE"]["pr_auc"]["value"]
    assert macro == pytest.approx((average["value"] + other) / 2)
    held_out = document["territory_metrics"]["held_out"]["baseline"]["2"]
    assert held_out["all"]["ndcg@10"]["value"] == result[2, "held_out"].metrics["ndcg@10"][3, 0]
    assert document["territory_counts"]["trained"]["1"]["all"]["num_users"] == 180
    assert "gini" in document["popularity_bias"]["trained"]["mtl"]["1"]["DE"]
    world = document["title_metrics"]["trained"]["mtl"]["average"]["World"]
    assert world["pr_auc"]["scope"] == "local"
    assert "pr_auc_gain" in world


def test_no_positives_is_null_with_a_note_never_zero(document):
    for cohort in ("trained", "held_out"):
        for day in ("1", "average"):
            for metric in ("pr_auc", "pr_auc_gain"):
                found = document["territory_metrics"][cohort]["mtl"][day]["XX"][metric]
                assert found == {"value": None, "note": "no positives"}


def test_a_gain_is_the_mean_of_the_days_paired_gains(tables, runs):
    base, mtl = (r.results for r in runs)
    days = [
        relative_gain(mtl[d, "trained"].metrics["pr_auc"][1], base[d, "trained"].metrics["pr_auc"][1]) for d in (1, 2)
    ]
    table = tables["territory_metrics"]
    gains = table[(table.metric == "pr_auc_gain") & (table.cohort == "trained") & (table.day == "average")]
    gains = gains.set_index("territory")
    assert set(gains.variant) == {"mtl"}
    assert tuple(gains.loc["DE", ["value", "low", "high"]]) == pytest.approx(interval(nan_mean(np.stack(days))))
    assert gains.value["DE"] > 0
    assert gains.value["mean"] == pytest.approx((gains.value["DE"] + gains.value["FR"]) / 2)


def test_seeds_of_a_variant_are_averaged_and_widen_the_interval():
    many = [run(v, n, seed, ("all users",), (1,)) for v, n in (("baseline", 3.0), ("mtl", 1.0)) for seed in (1, 2, 3)]
    together = EvaluationReport(many, TERRITORIES, TITLES).intervals("pr_auc", "mtl", over="baseline")
    alone = [
        EvaluationReport([many[s], many[3 + s]], TERRITORIES, TITLES).intervals("pr_auc", "mtl", over="baseline")
        for s in range(3)
    ]
    assert together["FR"].value == pytest.approx(np.mean([a["FR"].value for a in alone]))
    spread = np.std([a["FR"].value for a in alone], ddof=1)
    assert (together["FR"].high - together["FR"].low) / 2 > 4.303 * spread / np.sqrt(3) * 0.9


def test_title_rows_have_scope_positives_and_means(tables):
    table = tables["title_metrics"]
    assert table.title.unique().tolist() == [*TITLES, "local_mean", "global_mean"]
    gains = table[(table.metric == "pr_auc_gain") & (table.cohort == "trained") & (table.day == "average")]
    gains = gains.set_index("title")
    assert gains.scope.tolist() == ["global", "local", "local", "global"]
    assert gains.num_positives["local_mean"] == gains.num_positives["World"] > 0
    assert gains.value["local_mean"] == pytest.approx(gains.value["World"])


def test_rows_are_observations_and_csv_files_hold_the_same(tables, tmp_path):
    output.write_csv_files(str(tmp_path / "out"), tables)
    assert {p.stem for p in (tmp_path / "out").iterdir()} == set(tables) == set(TABLE_KEYS)
    for name, table in tables.items():
        assert not table.duplicated(list(TABLE_KEYS[name])).any()
        read = pd.read_csv(tmp_path / "out" / f"{name}.csv", dtype={"day": str}, float_precision="round_trip")
        pd.testing.assert_frame_equal(read.fillna(""), table.fillna(""), check_dtype=False)


def cells(table: Table, column: int) -> dict[str, Text]:
    """Last cell of each territory in a column of the gain table."""
    names = [str(name) for name in table.columns[0].cells]
    return {name: cell for name, cell in zip(names, table.columns[column].cells, strict=True) if isinstance(cell, Text)}


def test_terminal_tables_mark_positive_averages_and_name_missing_ones(report):
    table = gain_rich_table(report)
    average = cells(table, 4)
    assert average["FR"].style == "bold"
    assert "XX" not in average
    assert "no positives: XX" in " ".join(printed([table]).split())
    assert "±" in printed([terminal.metric_rich_table(report)])
    assert "World" in printed([terminal.title_rich_table(report)])


def test_an_insignificant_gain_is_dim(runs):
    same = EvaluationReport([runs[0], EvaluatedRun("copy", runs[0].results)], TERRITORIES, TITLES)
    assert {cell.style for cell in cells(gain_rich_table(same), 4).values()} == {"dim"}
    assert same.intervals("pr_auc", "copy", over="baseline")["FR"] == (0, 0, 0)


def test_long_tables_show_the_largest_territories_and_say_so(report, monkeypatch):
    monkeypatch.setattr("mtrec_ray.evaluation.terminal_tables.MAX_TERRITORIES", 1)
    positives = report.counts("num_positives")
    table = gain_rich_table(report)
    largest = TERRITORIES[int(np.argmax(positives[:3]))]
    assert set(map(str, table.columns[0].cells)) == {largest, "all", "mean"}
    assert "territory_metrics.csv has the rest" in " ".join(printed([table]).split())


def few_and_many(positive_users: int) -> EvaluationReport:
    """Territory 0 has many positive users, 1 only so many on day 1 and none on day 2."""
    runs = []
    for variant, noise in (("baseline", 3.0), ("mtl", 0.1)):
        results = {}
        for day in (1, 2):
            one = EvaluationState(SETTINGS, DAY_TITLES)
            for territory, keys, taste, labels, candidates, titles in chunks(day):
                allowed = len(keys) if territory == 0 else positive_users if day == 1 else 0
                positive = labels & candidates
                kept = labels & (np.cumsum(positive.any(axis=1)) <= allowed)[:, None]
                rng = np.random.default_rng([day, territory, int(10 * noise)])
                logits = (taste + rng.normal(0, noise, taste.shape)).astype(np.float32)
                one.add(territory, keys, logits, kept, candidates, titles)
            results[day, "held_out"] = one.summarise()
        runs.append(EvaluatedRun(variant, results))
    return EvaluationReport(runs, TERRITORIES, TITLES)


def test_a_territory_with_few_positive_users_has_values_without_interval_and_is_never_bold():
    for count, has_interval in ((9, False), (10, True)):
        report = few_and_many(count)
        found = report.intervals("pr_auc", "mtl", over="baseline")
        assert found["DE"].value > 0
        assert np.isnan(found["DE"].low) != has_interval
        assert np.isfinite([found[name].low for name in ("FR", "all", "mean")]).all()
        first_day = report.intervals("pr_auc", "mtl", day=1, over="baseline")
        assert first_day["mean"].value == pytest.approx((first_day["FR"].value + first_day["DE"].value) / 2)
        table = gain_rich_table(report)
        assert ("bold" in str(cells(table, 4)["DE"].style)) == has_interval
        assert ("±" in str(cells(table, 4)["DE"])) == has_interval
        caption = "fewer than 10 users with a positive: no interval, but part of mean: DE"
        assert (caption in " ".join(printed([table]).split())) != has_interval
    named = output.evaluation_document(output.evaluation_tables(few_and_many(9)), "baseline")
    average = named["territory_metrics"]["held_out"]["mtl"]["average"]
    assert average["DE"]["pr_auc_gain"].keys() == {"value", "note"}
    assert average["DE"]["pr_auc"]["note"] == "fewer than 10 users with a positive: no interval"


def test_days_without_a_positive_are_named():
    report = few_and_many(12)
    assert report.empty_days() == {"DE": [2]}
    assert "no positives on day 2: DE" in " ".join(printed([gain_rich_table(report)]).split())
    table = output.evaluation_tables(report)["territory_metrics"].set_index(["variant", "day", "territory", "metric"])
    row = table.loc[("mtl", "average", "DE", "pr_auc")]
    assert row["note"] == "mean over the other days: no positives on day 2"
    assert row["low"] < row["value"] < row["high"]
    assert table.loc[("mtl", "2", "DE", "pr_auc")]["note"] == "no positives"


def test_gains_are_over_each_baseline_in_one_report(runs):
    several = [*runs, run("mtl-slow", 0.6)]
    report = EvaluationReport(several, TERRITORIES, TITLES, baselines=["baseline", "mtl"], notes=["a note"])
    tables = output.evaluation_tables(report)
    for name in ("territory_metrics", "title_metrics"):
        table = tables[name]
        gains = table[table.metric == "pr_auc_gain"]
        assert set(zip(gains.variant, gains.over, strict=True)) == {
            ("mtl", "baseline"), ("mtl-slow", "baseline"), ("baseline", "mtl"), ("mtl-slow", "mtl"),
        }  # fmt: skip
        assert table[table.metric == "pr_auc"].over.isna().all()
        assert not table.duplicated(list(TABLE_KEYS[name])).any()
    found = output.evaluation_document(tables, "baseline")["territory_metrics"]["held_out"]["mtl-slow"]["1"]["FR"]
    values = {v: one.value for v in report.variants for one in [report.intervals("pr_auc", v, "held_out", 1)["FR"]]}
    for key, over in (("pr_auc_gain", "baseline"), ("pr_auc_gain/mtl", "mtl")):
        assert found[key]["value"] == pytest.approx(100 * (values["mtl-slow"] / values[over] - 1))
    assert "ndcg@10_gain/mtl" in found
    shown = printed(terminal.rich_tables(report, with_candidates=False))
    for over in ("baseline", "mtl"):
        assert f"PR-AUC, and gain in % over {over}, trained users" in shown
        assert f"PR-AUC gain in % over {over} by title" in shown
    assert "a note" in shown


def test_popularity_bias_has_intervals_and_paired_differences(report, tables):
    table = tables["popularity_bias"]
    chosen = table[(table.cohort == "trained") & (table.variant == "mtl") & (table.day == "average")]
    rows = chosen.set_index(["metric", "territory"])
    for metric in ("arp", "aplt", "pop_rsp", "local_fraction", "pop_reo"):
        for territory in ("FR", "all", "mean"):
            row, difference = rows.loc[(metric, territory)], rows.loc[(f"{metric}_difference", territory)]
            assert row["low"] <= row["value"] <= row["high"]
            base = report.intervals(metric, "baseline", "trained")[territory]
            assert difference["value"] == pytest.approx(row["value"] - base.value)
            assert difference["low"] <= difference["value"] <= difference["high"]
            assert difference["over"] == "baseline"
    assert rows.loc[("gini", "all")][["low", "high"]].isna().all()
    shown = printed([terminal.bias_rich_table(report)])
    assert "Popularity bias, and difference from baseline" in shown
    assert "±" in shown
