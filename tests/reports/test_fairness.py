"""Sentences and cells of audits against plain loops, and audits that lack a part."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.reports.card import card_page, intersection_rows, summary, value_rows
from mtrec_ray.reports.config import ReportConfig
from mtrec_ray.reports.fairness import (
    INSIDE,
    OUTSIDE,
    UNKNOWN,
    fairness_section,
    leakage_chart,
    leakage_rows,
    null_verdict,
)
from mtrec_ray.reports.group_gaps import gap_chart, gap_rows
from mtrec_ray.reports.inputs import Folder, Inputs, read_inputs
from mtrec_ray.reports.report import make_report
from mtrec_ray.reports.searches import searches_section
from tests.reports.made import audit_document, write_audit, write_run, write_search


def section_of(document):
    return fairness_section(Inputs([Folder("audit", "audit", document, "audit")]))


@pytest.mark.parametrize(
    ("value", "null_high", "hidden", "expected"),
    [
        (0.6, 0.55, False, OUTSIDE),
        (0.55, 0.55, True, INSIDE),
        (0.9, 1.0, None, UNKNOWN),
        (0.5, 0.6, None, UNKNOWN),
        (None, 0.6, True, UNKNOWN),
        (0.6, None, True, UNKNOWN),
    ],
)
def test_a_figure_is_inside_or_outside_its_null_or_untold(value, null_high, hidden, expected):
    assert null_verdict({"auc": {"value": value, "null_high": null_high}, "hidden": hidden}) == expected


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), attributes=st.integers(1, 4))
def test_written_and_untold_figures_are_counted(seed, attributes):
    document = audit_document(attributes, seed)
    untold = written = hidden = 0
    for number, of in enumerate(document["combinations"].values()):
        for attribute in of["hides"]:
            hidden += 1
            written += of["written"][attribute]["writes_value"]
            if (number + seed) % 3 == 0:
                of["leakage"]["vectors"][attribute]["auc"].update(value=0.9, null_high=1.0)
                untold += 1
    sentence = leakage_chart(document, leakage_rows(document)).sentence
    assert (f"Of {untold} too few users were attacked to tell." in sentence) == (untold > 0)
    assert f"{written} of the {hidden} (W) are read by an attacker with many vectors" in sentence
    assert f"attribute1 in {written} of {written} combinations" in summary(document)


def test_the_drawing_marks_each_state_without_colour():
    document = audit_document(2)
    of = document["combinations"]["attribute1+attribute2"]["leakage"]["vectors"]
    of["attribute1"]["auc"].update(value=0.61, null_high=0.53)
    of["attribute2"]["auc"].update(value=0.72, null_high=1.0)
    document["combinations"]["none"]["leakage"]["vectors"]["attribute1"]["auc"].update(value=0.51)
    figure = leakage_chart(document, leakage_rows(document)).figure()
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "0.610 ▲ W" in texts
    assert "0.720 ?" in texts
    assert texts[0] == "0.510"


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)), min_size=4, max_size=4))
def test_gaps_beyond_chance_are_counted(gaps):
    document = audit_document(2)
    beyond = 0
    for (value, null_high), of in zip(gaps, document["combinations"].values(), strict=True):
        found = {"ratio": 0.7, "ratio_low": 0.6, "ratio_high": 0.9, "value": value, "null_high": null_high}
        of["ndcg_gaps"] = {"attribute2": {"full_ndcg@10": found}}
        beyond += value > null_high
    assert gap_chart(document).sentence == (
        "Of the backbone, the worst value of an attribute has this fraction of the best one's NDCG@10: 0.70 for "
        f"attribute2. {beyond} of 4 gaps are larger than chance makes them."
    )
    assert gap_rows(document)["ratio_low"].tolist() == [0.6] * 4
    assert gap_chart(document).figure() is not None


def test_values_and_intersections_of_the_card_are_worked_by_hand():
    document = audit_document(2)
    means = {"a": 0.2, "b": 0.1}
    cells = [
        {
            "values": [name],
            "num_users": 500,
            "full_ndcg@10": {"value": value, "low": value - 0.05, "high": value + 0.05},
        }
        for name, value in means.items()
    ]
    pairs = [{**cell, "values": [*cell["values"], "c"], "num_users": 90} for cell in cells]
    document["combinations"]["none"]["ndcg_of_groups"] = {"attribute1": cells, "attribute1 x attribute2": pairs}
    document["not_tested"]["small_groups"] = {"attribute1 x attribute2": [{"values": ["b", "d"], "num_users": 3}]}
    assert list(value_rows(document))[:3] == [
        ("attribute1", "a", "500", "150", "0.200 (0.150 to 0.250)", "1.00"),
        ("attribute1", "b", "500", "150", "0.100 (0.050 to 0.150)", "0.50"),
        ("attribute1", "unknown", "9", "3", "", ""),
    ]
    best, worst = "a x c (90): 0.200 (0.150 to 0.250)", "b x c (90): 0.100 (0.050 to 0.150)"
    assert list(intersection_rows(document)) == [("attribute1 x attribute2", "2", "1", best, worst)]


class TestMissingParts:
    def test_an_audit_without_lists_and_histories(self):
        section = section_of(audit_document(lists=False))
        assert [chart.name for chart in section.charts] == ["leakage", "cost", "group_gaps", "audit_method"]
        assert "From top-10 lists" not in card_page(audit_document(lists=False))

    def test_an_attribute_that_could_not_be_attacked(self):
        document = copy.deepcopy(audit_document(2))
        document["attributes"]["height"] = document["attributes"]["attribute1"] | {"attacked": False}
        assert "height was not attacked: one value alone." in section_of(document).notes
        page = card_page(document)
        assert page.count("not attacked") == page.count("null to") / 2  # a third column, as wide as each of two
        assert "<li>height: one value alone</li>" in page

    def test_an_audit_without_events(self):
        document = audit_document()
        document["data"]["events"] = document["data"]["held_out_events"] = {"first": None, "last": None}
        assert "no event" in card_page(document)
        assert "no event" in section_of(document).charts[-1].data["value"].tolist()

    def test_a_former_audit_is_left_out_and_the_rest_stands(self, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "audit.json").write_text(json.dumps({"version": 1}))
        run, page = write_run(tmp_path / "run"), tmp_path / "page.html"
        made = make_report(ReportConfig(results=[str(run), str(tmp_path / "old")], out=str(page)))
        notes = {of.name: of.notes for of in made.sections}
        assert re.search("old' has version 1, a report reads 2: audit the run again", notes["fairness"][0])
        assert "loss" in made.metrics["figure"].tolist()
        assert "has version 1" in page.read_text()

    def test_a_search_without_a_finished_trial(self, tmp_path):
        (tmp_path / "early").mkdir()
        (tmp_path / "early" / "search.yaml").write_text("version: 3\n")
        inputs = read_inputs([str(tmp_path / "early"), str(write_search(tmp_path / "other", {"loss": "min"}))])
        section = searches_section(inputs)
        assert section.notes == [
            "Search early has no finished trial: continue it with `mtrec search ... --resume`.",
        ]
        assert section.charts[0].name == "other_history"


def test_the_front_of_a_search_of_eliminators_is_pointed_to(tmp_path):
    search = write_search(tmp_path / "lambda", {"leakage/mean": "min", "ndcg@10/mean": "max"})
    inputs = read_inputs([str(write_audit(tmp_path / "audit")), str(search)])
    assert "What hiding more costs: the front of search lambda, under Searches." in fairness_section(inputs).notes
    assert "lambda_front" in [chart.name for chart in searches_section(inputs).charts]


class TestCardOfASavedAudit:
    def test_is_that_of_the_audit(self, tmp_path):
        audit, card = write_audit(tmp_path / "audit"), tmp_path / "card.html"
        make_report(ReportConfig(results=[str(audit)], out=str(tmp_path / "page.html"), card=str(card)))
        assert summary(audit_document()) in card.read_text()

    def test_needs_an_audit(self, tmp_path):
        config = ReportConfig(results=[str(write_run(tmp_path / "run"))], out=str(tmp_path / "p.html"), card="c.html")
        with pytest.raises(UserError, match=r"card = 'c\.html': no folder is an audit.*add --audit FOLDER"):
            make_report(config)
