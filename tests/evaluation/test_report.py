"""The report: flat keys, notes, gains and their pairing; tables 2 and 3; files."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrec_ray.evaluation.intervals import interval, nan_mean, relative_gain
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.score_plots import title_score_figure, write_figure
from mtrec_ray.evaluation.tables import gain_table, metric_table, title_table, write_tables
from mtrec_ray.evaluation.terminal import gain_rich_table, metric_rich_table, title_rich_table
from tests.evaluation.simulated import HISTORY, SETTINGS, state

TERRITORIES, TITLES = ["FR", "DE", "XX"], ["Local Hero", "World"]


def run(variant: str, noise: float, seed: int = 0, cohorts=("trained", "held_out"), days=(1, 2)) -> EvaluatedRun:
    results = {
        (day, cohort): state(day + 10 * c, noise, seed + sum(map(ord, variant))).summarise(HISTORY)
        for c, cohort in enumerate(cohorts)
        for day in days
    }
    return EvaluatedRun(variant, results, seed)


@pytest.fixture(scope="module")
def runs() -> list[EvaluatedRun]:
    return [run("baseline", 3.0), run("mtl", 0.2)]


@pytest.fixture(scope="module")
def report(runs) -> EvaluationReport:
    return EvaluationReport(runs, TERRITORIES, TITLES, primary_cohort="trained")


def render(table: Table) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return " ".join(console.export_text().split())


def test_flat_keys_of_one_run_have_no_prefix(runs):
    flat: dict[str, Any] = EvaluationReport(runs[:1], TERRITORIES, TITLES).flat_metrics()
    result = runs[0].results
    assert flat["day1/pr_auc/FR"] == result[1, "trained"].pr_auc[0, 0]
    assert flat["pr_auc/FR"] == pytest.approx(np.mean([result[d, "trained"].pr_auc[0, 0] for d in (1, 2)]))
    assert flat["held_out/day2/ndcg@10/all"] == result[2, "held_out"].ranking["ndcg@10"][3, 0]
    assert flat["pr_auc/FR_low"] < flat["pr_auc/FR"] < flat["pr_auc/FR_high"]
    assert flat["pr_auc/FR_bound_low"] <= flat["pr_auc/FR"] <= flat["pr_auc/FR_bound_high"]
    assert flat["pr_auc/mean"] == pytest.approx((flat["pr_auc/FR"] + flat["pr_auc/DE"]) / 2)
    assert flat["num_users/all"] == 360
    assert "gini/DE" in flat
    assert "title_pr_auc/World_high" in flat
    assert not [key for key in flat if "gain" in key]


def test_no_positives_is_null_with_a_note_never_zero(report):
    flat = report.flat_metrics()
    for key in ("mtl/pr_auc/XX", "gain/mtl/XX", "held_out/gain/mtl/XX", "day1/gain/mtl/XX"):
        assert flat[key] is flat[f"{key}_low"] is flat[f"{key}_high"] is None
        assert flat[f"{key}_note"] == "no positives"
    json.dumps(flat, allow_nan=False)


def test_gain_is_the_mean_of_the_days_paired_gains(report, runs):
    base, mtl = (r.results for r in runs)
    days = [relative_gain(mtl[d, "trained"].pr_auc[1], base[d, "trained"].pr_auc[1]) for d in (1, 2)]
    found = report.flat_metrics()
    expected = interval(nan_mean(np.stack(days)))
    assert found["gain/mtl/DE"] == pytest.approx(expected.value)
    assert found["gain/mtl/DE_low"] == pytest.approx(expected.low)
    assert found["gain/mtl/DE"] > 0
    assert found["gain/mtl/mean"] == pytest.approx((found["gain/mtl/DE"] + found["gain/mtl/FR"]) / 2)


def test_seeds_of_a_variant_are_averaged_and_widen_the_interval():
    many = [run(v, n, seed, ("all users",), (1,)) for v, n in (("baseline", 3.0), ("mtl", 1.0)) for seed in (1, 2, 3)]
    together = EvaluationReport(many, TERRITORIES, TITLES).intervals("pr_auc", "mtl", gain=True)
    alone = [
        EvaluationReport([many[s], many[3 + s]], TERRITORIES, TITLES).intervals("pr_auc", "mtl", gain=True)
        for s in range(3)
    ]
    assert together["FR"].value == pytest.approx(np.mean([a["FR"].value for a in alone]))
    spread = np.std([a["FR"].value for a in alone], ddof=1)
    assert (together["FR"].high - together["FR"].low) / 2 > 4.303 * spread / np.sqrt(3) * 0.9


def test_table_2_has_days_and_their_average_by_territory(report):
    table = gain_table(report)
    assert list(table.columns) == ["FR", "DE", "XX", "all", "mean"]
    assert list(table.index) == [("mtl vs baseline", s) for s in ("Day 1", "Day 2", "Average")]
    first, second, average = table["FR"].tolist()
    assert average == pytest.approx((first + second) / 2)
    assert np.isnan(table["XX"].to_numpy()).all()
    assert np.all(gain_table(report, part="low")["FR"].to_numpy() < table["FR"].to_numpy())
    assert list(metric_table(report, "ndcg@10").index.get_level_values(0)) == ["baseline"] * 3 + ["mtl"] * 3


def test_table_3_has_scope_positives_and_gains(report):
    table = title_table(report)
    assert list(table.index) == ["Local Hero", "World", "local_mean", "global_mean"]
    assert list(table["scope"]) == ["global", "local", "local", "global"]
    _, world, local_mean, _ = table["mtl vs baseline"].tolist()
    assert world == pytest.approx(local_mean)


def test_files_are_written_and_read_back(report, tmp_path):
    files = write_tables(report, str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(files)
    assert {"gain.csv", "gain-held_out.csv", "pr_auc.csv", "titles.csv", "metrics.json"} <= set(files)
    gains = pd.read_csv(tmp_path / "out" / "gain.csv", index_col=[0, 1])
    assert gains["DE_high"].iloc[-1] == pytest.approx(report.flat_metrics()["gain/mtl/DE_high"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == report.flat_metrics()


def cells(table: Table, column: int) -> dict[str, Text]:
    """Last cell of each territory in a column of the gain table."""
    names = [str(name) for name in table.columns[0].cells]
    return {name: cell for name, cell in zip(names, table.columns[column].cells, strict=True) if isinstance(cell, Text)}


def test_terminal_tables_mark_positive_averages_and_name_missing_ones(report):
    table = gain_rich_table(report)
    average = cells(table, 4)
    assert average["FR"].style == "bold"
    assert "XX" not in average
    assert "no positives: XX" in render(table)
    assert "±" in render(metric_rich_table(report))
    assert "World" in render(title_rich_table(report))


def test_an_insignificant_gain_is_dim(runs):
    same = EvaluationReport([runs[0], EvaluatedRun("copy", runs[0].results)], TERRITORIES, TITLES)
    assert {cell.style for cell in cells(gain_rich_table(same), 4).values()} == {"dim"}
    assert same.flat_metrics()["gain/copy/FR"] == same.flat_metrics()["gain/copy/FR_high"] == 0


def test_long_tables_fold_to_the_largest_territories_and_say_so(report):
    positives = report.counts("num_positives")
    table = gain_rich_table(report, max_territories=1)
    largest = TERRITORIES[int(np.argmax(positives[:3]))]
    assert set(map(str, table.columns[0].cells)) == {largest, "all", "mean"}
    assert "CSV has the rest" in render(table)


def test_runs_that_do_not_compare_are_refused(runs):
    with pytest.raises(ValueError, match="at least one"):
        EvaluationReport([], TERRITORIES)
    with pytest.raises(ValueError, match="territory names"):
        EvaluationReport(runs, ["FR", "all", "DE"], TITLES)
    with pytest.raises(ValueError, match="title names"):
        EvaluationReport(runs, TERRITORIES)
    with pytest.raises(ValueError, match="seeds"):
        EvaluationReport([*runs, EvaluatedRun("mtl", runs[1].results, 5)], TERRITORIES, TITLES)
    with pytest.raises(ValueError, match="covers"):
        EvaluationReport([runs[0], run("mtl", 1.0, days=(1,))], TERRITORIES, TITLES)
    with pytest.raises(ValueError, match="primary cohort"):
        EvaluationReport(runs, TERRITORIES, TITLES, "unknown")
    with pytest.raises(ValueError, match="unknown metric"):
        EvaluationReport(runs, TERRITORIES, TITLES).intervals("auc", "mtl")


def test_figure_2_draws_each_model_and_needs_scores(runs, tmp_path):
    histograms = {r.variant: r.results[1, "trained"].title_histograms[0] for r in runs}
    figure = title_score_figure(histograms, SETTINGS.grid, "World")
    outlines: list[Any] = list(figure.axes[0].patches)
    assert [outline.get_data().values.sum() for outline in outlines] == pytest.approx([1, 1])
    write_figure(figure, str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no scores"):
        title_score_figure({"mtl": np.zeros(1024)}, SETTINGS.grid, "World")
