"""The page: what it holds and loads, what it says where something is missing, accessibility."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.reports.card import write_card
from mtrec_ray.reports.config import ReportConfig
from mtrec_ray.reports.report import Report, make_report
from tests.reports.made import audit_document, write_audit, write_evaluation, write_run, write_search

MAX_BYTES = 5_000_000


def report(out: Path, *results: Path, **settings: object) -> Report:
    document = {"results": list(map(str, results)), "out": str(out)} | settings
    return make_report(validate_config(ReportConfig, document))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of every kind, and their page `report.html`."""
    folder = tmp_path_factory.mktemp("report")
    results = [
        write_run(folder / "runs" / "base", optim={"lr": 0.001}),
        write_run(folder / "runs" / "mtl", optim={"lr": 0.002}),
        write_evaluation(folder / "evaluation"),
        write_evaluation(folder / "later", seed=1),
        write_search(folder / "searches" / "lambda", {"leakage": "min", "ndcg@10": "max"}),
        write_audit(folder / "other_audit", seed=1),
    ]
    report(folder / "report.html", *results, audit=str(write_audit(folder / "audit")))
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text()


def test_every_figure_is_in_the_page_and_beside_it_as_files(folder, page):
    names = re.findall(r'href="report_files/(\w+)\.csv"', page)
    assert len(names) == len(set(names)) > 15
    assert "territory_gains" in names
    assert "leakage" in names
    for name in names:
        assert len(pd.read_csv(folder / "report_files" / f"{name}.csv")) > 0
        if f"{name}.svg" in page:
            ElementTree.parse(folder / "report_files" / f"{name}.svg")
            assert (folder / "report_files" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_loads_nothing_and_names_each_id_once(page):
    assert not re.search(r"<(script|link|iframe|object|img)|@import|url\((?!#)", page)
    links = re.findall(r'href="([^"]*)"', page)
    assert all(link.startswith(("#", "report_files/")) for link in links)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(f'id="{link[1:]}"' in page for link in links if link.startswith("#"))


def test_drawings_follow_the_reader_s_colours(page):
    drawings = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert "var(--ink)" in drawing
        assert "#1b1b21" not in drawing
        assert 'role="img"' in drawing


def test_sentences_are_those_of_the_result(folder, page):
    shown = report(folder / "again.html", folder / "evaluation").metrics
    assert set(shown["section"]) == {"territories", "popularity", "comparison"}
    text = (folder / "again.html").read_text()
    for sentence in shown["sentence"]:
        assert sentence in text


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("territories", "No evaluation was given: `mtrec evaluate propensity RUN... --out FOLDER` makes one"),
        ("fairness", "No audit was given: `mtrec audit RUN --out FOLDER` makes one"),
        ("searches", "No search was given"),
    ],
)
def test_a_section_without_its_input_says_what_makes_it(tmp_path, section, says):
    made = report(tmp_path / "page.html", write_run(tmp_path / "run"))
    notes = {of.name: of.notes for of in made.sections}
    assert notes[section][0].startswith(says)
    assert says.split("`")[0] in (tmp_path / "page.html").read_text()


def test_runs_of_another_lake_and_territories_without_positives_are_named(tmp_path):
    results = write_run(tmp_path / "one"), write_run(tmp_path / "two", lake="other"), write_evaluation(tmp_path / "e")
    notes = {of.name: of.notes for of in report(tmp_path / "page.html", *results).sections}
    assert notes["comparison"] == ["Trained on another lake than one, so not comparable with it: two."]
    assert notes["territories"] == ["Without a positive on any day, so without a figure: T005."]


def test_evaluations_of_other_days_or_users_are_named(tmp_path):
    same = [write_evaluation(tmp_path / name) for name in ("first", "same")]
    other = write_evaluation(tmp_path / "other", days=3)
    notes = {of.name: of.notes for of in report(tmp_path / "page.html", *same, other).sections}
    (note,) = notes["comparison"]
    assert note.startswith("Evaluated on other days, users or titles than first, ")
    assert note.endswith("of the models: other.")
    assert notes["territories"][0] == "Drawn from first alone, as popularity bias is; see Comparison for same, other."
    assert report(tmp_path / "page.html", *same).sections[-1].notes == []


def test_an_evaluation_without_any_interval_is_drawn(tmp_path):
    """Its writer leaves empty columns out."""
    folder = write_evaluation(tmp_path / "e")
    for path in folder.glob("*.csv"):
        pd.read_csv(path).drop(columns=["low", "high"] * (path.stem != "title_scores"), errors="ignore").to_csv(path)
    made = report(tmp_path / "page.html", folder)
    assert "territory_gains" in [chart.name for chart in made.sections[0].charts]
    assert all(chart.figure() is not None or chart.draw is None for of in made.sections for chart in of.charts)


def test_folders_of_one_name_are_told_apart(tmp_path):
    goals = {"pr_auc": "max"}
    report(tmp_path / "page.html", write_search(tmp_path / "a" / "s", goals), write_search(tmp_path / "b" / "s", goals))
    assert {"a-s_history.csv", "b-s_history.csv"} <= {path.name for path in (tmp_path / "page_files").iterdir()}


def test_a_run_that_has_just_started_is_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0, "val/ndcg@10": 0.1}\n')
    (section,) = [of for of in report(tmp_path / "page.html", folder).sections if of.name == "training"]
    assert section.charts[1].sentence == "run 0 examples/s, 0% of the time in steps."


def test_an_attribute_with_too_few_users_has_no_verdict(tmp_path):
    document = audit_document(attributes=1)
    document["combinations"]["attribute1"]["leakage"]["vectors"]["attribute1"]["auc"] |= {"value": None, "low": None}
    (tmp_path / "audit.json").write_text(json.dumps(document))
    made = report(tmp_path / "page.html", tmp_path)
    (section,) = [of for of in made.sections if of.name == "fairness"]
    assert section.charts[0].sentence.startswith("0 of 0 hidden figures")
    write_card(str(tmp_path / "card.html"), document)
    assert "too few users" in (tmp_path / "card.html").read_text()


def test_one_model_alone_has_no_gain(tmp_path):
    made = report(tmp_path / "page.html", write_evaluation(tmp_path / "e", variants=("baseline",)))
    (section,) = [of for of in made.sections if of.name == "territories"]
    assert [chart.name for chart in section.charts] == ["counts", "title_scores"]
    assert section.notes[0].startswith("One model alone was evaluated")


class TestRefusals:
    def test_a_folder_without_results(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no result: name folders of a run, audit, evaluation"):
            report(tmp_path / "page.html", tmp_path)

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere' holds no result"):
            report(tmp_path / "page.html", tmp_path / "nowhere")

    def test_an_audit_of_another_version(self, tmp_path):
        (tmp_path / "audit.json").write_text(json.dumps({"version": 1}))
        with pytest.raises(UserError, match=r"has version 1, a report reads 2: audit the run again"):
            report(tmp_path / "page.html", tmp_path)

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(UserError, match=r"run\.json' is damaged"):
            report(tmp_path / "page.html", tmp_path)

    def test_a_page_that_is_no_html_file(self, tmp_path):
        with pytest.raises(UserError, match=r"out = .*page\.pdf': the page is one HTML file"):
            report(tmp_path / "page.pdf", write_run(tmp_path / "run"))

    def test_nothing_named(self, tmp_path):
        with pytest.raises(UserError, match="name at least one folder"):
            report(tmp_path / "page.html")


def test_220_territories_and_127_combinations_stay_small(tmp_path):
    variants = ("baseline", "baseline+upsampling", "mtl+upsampling", "mtl-slow+upsampling")
    evaluation = write_evaluation(tmp_path / "e", territories=220, days=3, variants=variants)
    made = report(tmp_path / "page.html", evaluation, audit=str(write_audit(tmp_path / "a", attributes=7)))
    assert len((tmp_path / "page.html").read_bytes()) < MAX_BYTES
    assert sum(len(of.charts) for of in made.sections) >= 12


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "card"])
def test_axe_finds_no_error(folder, browser, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if name == "card":
        write_card(str(folder / "card.html"), audit_document())
    page = browser.new_page(color_scheme=scheme)
    page.goto(f"file://{folder}/{name}.html")
    found = axe.run(page)
    page.close()
    assert found.violations_count == 0, found.generate_report()


def test_a_phone_scrolls_drawings_and_not_the_page(folder, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"file://{folder}/report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_card_has_what_an_auditor_asks_for(folder):
    document = audit_document()
    write_card(str(folder / "card.html"), document)
    text = (folder / "card.html").read_text()
    for needed in (document["weights_hash"], document["data"]["lake_hash"], "2022-01-01", "303", "unknown", "height"):
        assert needed in text
    section = text[text.index('id="leakage"') : text.index('id="cost"')]
    table = section[section.index("<tbody>") : section.index("</tbody>")]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*)', table)
    assert [name for name, _ in rows] == ["nothing: the backbone", *list(document["combinations"])[1:]]
    cell = re.findall(r"<td[^>]*>(.*?)</td>", dict(rows)["attribute1"])[0]
    auc = document["combinations"]["attribute1"]["leakage"]["vectors"]["attribute1"]["auc"]
    assert cell.startswith(f"{auc['value']:.3f}")
    assert ("OUTSIDE THE NULL" in cell) == (auc["value"] > auc["null_high"])
