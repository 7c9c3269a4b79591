"""Numbers and sentences of charts against plain loops over the same tables."""

# pyright: reportAttributeAccessIssue=false
# the stubs of pandas know no columns of rows, and few results of selections

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.reports.comparison import comparison_section, difference, verdict
from mtrec_ray.reports.fairness import cost_chart, leakage_chart, leakage_rows
from mtrec_ray.reports.inputs import read_inputs
from mtrec_ray.reports.marks import as_ratio, spaced
from mtrec_ray.reports.popularity import LOWER_IS_LESS_BIASED, METRICS, popularity_section
from mtrec_ray.reports.searches import pareto, searches_section
from mtrec_ray.reports.territories import MAJOR_FRACTION, majors, territories_section
from mtrec_ray.reports.training import training_section
from tests.reports.made import audit_document, write_evaluation, write_run, write_search

SEEDS = st.integers(0, 10_000)


def charts(section) -> dict[str, object]:
    return {chart.name: chart for chart in section.charts}


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, territories=st.integers(2, 9))
def test_territories_won_and_lost_are_counted(seed, territories):
    with TemporaryDirectory() as folder:
        inputs = read_inputs([str(write_evaluation(Path(folder) / "e", territories, seed=seed))])
        chart = charts(territories_section(inputs))["territory_gains"]
        table = pd.read_csv(Path(folder) / "e" / "territory_metrics.csv")
    expected = []
    for variant in ("baseline+upsampling", "mtl+upsampling"):
        up = down = sure_up = sure_down = count = 0
        for row in table.itertuples():
            if row.variant != variant or row.metric != "pr_auc_gain" or row.day != "average":
                continue
            if row.territory in ("all", "mean"):
                continue
            count += 1
            up, down = up + (row.value > 0), down + (row.value < 0)
            sure_up, sure_down = sure_up + (row.low > 0), sure_down + (row.high < 0)
        expected.append(
            f"{variant} is better than baseline in {up} of {count} territories (in {sure_up} beyond the 95% interval) "
            f"and worse in {down} (in {sure_down})."
        )
    assert chart.sentence == " ".join(expected)
    assert list(chart.table["territory"])[-2:] == ["all", "mean"]


def test_gains_of_each_day_are_in_the_table(tmp_path):
    folder = write_evaluation(tmp_path / "e", days=3)
    chart = charts(territories_section(read_inputs([str(folder)])))["territory_gains"]
    table = pd.read_csv(folder / "territory_metrics.csv", dtype={"day": str}).set_index("metric").loc["pr_auc_gain"]
    of = table[(table["variant"] == "mtl+upsampling") & (table["territory"] == "T002")].set_index("day")["value"]
    cell = chart.table.set_index("territory").loc["T002", "mtl+upsampling"]
    assert cell.startswith(f"{of['average']:+.1f}% (")
    assert cell.endswith(f" [{of['1']:+.0f}, {of['2']:+.0f}, {of['3']:+.0f}]")
    assert "small dots are single days" in chart.how


def test_many_territories_are_drawn_by_rank_without_dots(tmp_path):
    folder = write_evaluation(tmp_path / "e", 42, days=1)
    chart = charts(territories_section(read_inputs([str(folder)])))["territory_gains"]
    assert "small dots" not in chart.how
    assert "[" not in chart.table.to_csv()
    assert chart.figure().axes[-1].get_xlabel() == "territories, by rank"


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_majors_are_the_fewest_territories_with_the_fraction(positives):
    rows = [("c", f"T{n}", count) for n, count in enumerate(positives)]
    found = majors(pd.DataFrame(rows, columns=["cohort", "territory", "num_positives"]), "c")
    ranked = sorted(range(len(positives)), key=lambda n: -positives[n])
    held, expected = 0, set()
    for n in ranked:
        if held >= MAJOR_FRACTION * sum(positives):
            break
        held += positives[n]
        expected.add(f"T{n}")
    assert found == expected


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_popularity_bias_is_called_less_where_the_interval_says_so(seed):
    with TemporaryDirectory() as folder:
        inputs = read_inputs([str(write_evaluation(Path(folder) / "e", seed=seed))])
        chart = charts(popularity_section(inputs))["popularity_bias"]
        table = pd.read_csv(Path(folder) / "e" / "popularity_bias.csv")
    for variant in ("baseline+upsampling", "mtl+upsampling"):
        (sentence,) = [part for part in chart.sentence.split("Lists of ") if part.startswith(f"{variant} are")]
        less, _, more = sentence.partition("more biased by")
        for metric, (heading, *_) in METRICS.items():
            (row,) = table[(table["variant"] == variant) & (table["metric"] == f"{metric}_difference")].itertuples()
            falls = row.high < 0 if metric in LOWER_IS_LESS_BIASED else row.low > 0
            rises = row.low > 0 if metric in LOWER_IS_LESS_BIASED else row.high < 0
            name = heading.split(",")[0]
            assert (name in less) == falls
            assert (name in more) == rises


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, attributes=st.integers(1, 4))
def test_hidden_figures_inside_the_null_are_counted(seed, attributes):
    document = audit_document(attributes, seed)
    inside = total = 0
    for of in document["combinations"].values():
        for attribute in of["hides"]:
            auc = of["leakage"]["vectors"][attribute]["auc"]
            total, inside = total + 1, inside + (auc["value"] <= auc["null_high"])
    chart = leakage_chart(document, leakage_rows(document))
    assert chart.sentence.startswith(f"{inside} of {total} hidden figures lie inside their null")
    costs = {
        n: of["accuracy"]["full_ndcg_change"]["value"] for n, of in document["combinations"].items() if n != "none"
    }
    cheapest, dearest = max(costs, key=costs.__getitem__), min(costs, key=costs.__getitem__)
    expected = f"Ignoring {cheapest} changes NDCG@10 over all titles by {costs[cheapest]:+.1f}%, ignoring {dearest} by"
    assert cost_chart(document).sentence.startswith(expected)


def test_training_says_loss_speed_and_time(tmp_path):
    inputs = read_inputs([str(write_run(tmp_path / "base"))])
    found = charts(training_section(inputs))
    assert found["loss"].sentence == "Training loss at the end: base 0.05."
    assert found["time"].sentence == "base 800 examples/s, 50% of the time in steps."
    row = found["time"].data.iloc[0]
    assert (row["steps_s"], row["data_wait_s"], row["other_s"]) == pytest.approx((10, 6, 4))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_is_what_no_other_trial_beats(points):
    values = np.array(points, float)
    for row, on_front in zip(values, pareto(values, ["min", "max"]), strict=True):
        beaten = any(
            other[0] <= row[0] and other[1] >= row[1] and (other[0] < row[0] or other[1] > row[1]) for other in values
        )
        assert on_front == (not beaten)


def test_a_search_has_history_importance_and_front(tmp_path):
    one = write_search(tmp_path / "one", {"distance": "min"}, trials=20)
    two = write_search(tmp_path / "two", {"distance": "min", "ndcg@10": "max"})
    found = charts(searches_section(read_inputs([str(one), str(two)])))
    assert list(found) == ["one_history", "one_importance", "two_history", "two_front", "two_importance"]
    values = pd.read_csv(one / "metrics.csv").groupby("trial", sort=False)["value"].first()
    expected = f"The best of 20 finished trials has distance {values.min():.4g} (minimum wanted), found after "
    assert found["one_history"].sentence.startswith(f"{expected}{values.to_numpy().argmin() + 1};")
    assert found["one_importance"].sentence.startswith("optim.lr explains most of distance")
    for chart in found.values():
        assert chart.figure() is not None


def test_noise_is_called_noise(tmp_path):
    assert verdict(-0.1, 0.2) == "-0.1000 to +0.2000, noise"
    assert verdict(0.1, 0.2) == "+0.1000 to +0.2000"
    assert verdict(float("nan"), float("nan")) == "too few users to tell"
    one = pd.Series({"value": 1.0, "low": 0.7, "high": 1.3})
    other = pd.Series({"value": 3.0, "low": 2.6, "high": 3.4})
    assert difference(other, one) == pytest.approx((2.0, 1.5, 2.5))
    first, second = (str(write_evaluation(tmp_path / name, seed=seed)) for seed, name in enumerate("ab"))
    chart = charts(comparison_section(read_inputs([first, second])))["evaluations"]
    noise = int(((chart.data["low"] <= 0) & (chart.data["high"] >= 0)).sum())
    assert chart.sentence.startswith(f"{noise} of 3 differences are noise")


def test_bundles_are_compared_with_their_intervals(tmp_path):
    for name, value in (("live", 0.20), ("worse", 0.10)):
        (tmp_path / name).mkdir()
        figures = {"none": (value, 0.01), "gender": (0.15, 0.02)}
        metrics = {
            of: {"full_ndcg@10": {"value": v, "low": v - half, "high": v + half}} for of, (v, half) in figures.items()
        }
        (tmp_path / name / "manifest.json").write_text(json.dumps({"metrics": metrics}))
    section = comparison_section(read_inputs([str(tmp_path / name) for name in ("live", "worse")]))
    (chart,) = section.charts
    assert chart.sentence == "1 of 2 differences are noise; beyond their interval: ignoring none -0.1000."


def test_gains_are_drawn_as_ratios():
    assert as_ratio([-50, 0, 100]).tolist() == [-1, 0, 1]
    assert as_ratio([-100, 1e6]).tolist() == as_ratio([-90, 1500]).tolist()
    ticks = spaced([-90, -75, -50, -25, 0, 50, 100, 300, 700, 1500])
    places = as_ratio(ticks)
    assert 0 in ticks
    assert np.diff(places).min() >= 0.13 * (as_ratio([1500])[0] - as_ratio([-90])[0]) - 1e-9
