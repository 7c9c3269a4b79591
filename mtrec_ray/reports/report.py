"""`mtrec report`: one self-contained page, and each figure as SVG, PNG and CSV beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, check_writable, join, parent, write_file
from mtrec_ray.reports.card import write_card
from mtrec_ray.reports.chart import Chart, Section, inline_svg
from mtrec_ray.reports.comparison import comparison_section
from mtrec_ray.reports.config import ReportConfig
from mtrec_ray.reports.fairness import fairness_section
from mtrec_ray.reports.inputs import Inputs, read_inputs
from mtrec_ray.reports.page import render
from mtrec_ray.reports.popularity import popularity_section
from mtrec_ray.reports.searches import searches_section
from mtrec_ray.reports.territories import territories_section
from mtrec_ray.reports.training import training_section

SECTIONS: list[Callable[[Inputs], Section]] = [
    territories_section,
    popularity_section,
    fairness_section,
    training_section,
    searches_section,
    comparison_section,
]
SHOWN_ROWS = 12  # of a table that is open; longer ones open at a click


@dataclass(frozen=True)
class Report:
    """A `JobResult`: the page and what it says."""

    out: str
    sections: list[Section]

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a figure: section, figure, sentence."""
        rows = [(of.name, chart.name, chart.sentence) for of in self.sections for chart in of.charts]
        return pd.DataFrame(rows, columns=["section", "figure", "sentence"])

    def document(self) -> dict[str, Any]:
        figures = self.metrics.to_dict(orient="records")
        notes = [note for section in self.sections for note in section.notes]
        return {"version": 1, "report": self.out, "figures": figures, "notes": notes}

    def tables(self) -> list[RenderableType]:
        return [f"{self.out}: {len(self.metrics)} figures"]


def make_report(config: ReportConfig, progress: ProgressCallback | None = None) -> Report:
    """Draw what the folders hold; UserError for a folder that holds no result."""
    if not config.results and config.audit is None:
        raise UserError("results: name at least one folder of a run, evaluation, audit, search or bundle")
    inputs = read_inputs([*config.results, *([config.audit] if config.audit else [])])
    out = absolute(config.out)
    folder, file = parent(out)
    if not file.endswith(".html"):
        raise UserError(f"out = {config.out!r}: the page is one HTML file, so end its name in .html")
    audits = inputs.of("audit")
    if config.card and not audits:
        raise UserError(f"card = {config.card!r}: no folder is an audit to make a card of; add --audit FOLDER")
    check_writable(folder)
    if config.card:
        write_card(config.card, audits[0].document)
    sections = [make(inputs) for make in SECTIONS]
    beside = f"{file.removesuffix('.html')}_files"
    charts, drawings = [chart for section in sections for chart in section.charts], dict[str, str]()
    for done, chart in enumerate(charts, 1):
        for ending, content in chart.files().items():
            write_file(join(folder, beside, f"{chart.name}.{ending}"), content)
            if ending == "svg":
                drawings[chart.name] = inline_svg(content, chart.name, f"{chart.title}. {chart.sentence}")
        if progress:
            progress("drawing figures", done, len(charts))
    page = render(
        "report.html",
        inputs=inputs.folders,
        sections=sections,
        drawings=drawings,
        beside=beside,
        shown_rows=SHOWN_ROWS,
        cells=cells,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    write_file(out, page.encode())
    return Report(out, sections)


def cells(chart: Chart) -> list[list[tuple[str, bool]]]:
    """Rows of a chart's table: (text, whether it is a number)."""
    assert chart.table is not None
    texts = [["" if pd.isna(value) else str(value) for value in row] for row in chart.table.itertuples(index=False)]
    columns = zip(*texts, strict=True)
    numeric = [all(not text or text[0].isdigit() or text[0] in "+-*!." for text in column) for column in columns]
    return [list(zip(row, numeric, strict=True)) for row in texts]
