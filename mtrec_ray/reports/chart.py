"""A chart: one drawing, the sentence that says what it shows, and the numbers behind both.

Every chart of a report is written as SVG in the page, and as SVG, PNG and tidy CSV beside it. Colours of the SVG are
CSS variables of the page, so that one drawing serves light and dark.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# the stubs of matplotlib know neither STYLE's keys nor the settings of `canvas`

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1b1b21", "#6a6a75", "#d4d4da"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")  # Okabe & Ito 2008, and a brown
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # so that colour alone says nothing
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule"} | {color: f"c{i}" for i, color in enumerate(SERIES)}
WIDTH = 7.6  # inches
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mtrec_ray",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Chart:
    """What one figure of a report consists of."""

    name: str  # of its files
    title: str
    sentence: str  # what the numbers say, in words
    data: pd.DataFrame  # tidy: one row an observation
    draw: Callable[[], Figure] | None = None  # None: a table alone
    table: pd.DataFrame | None = None  # shown below; None: nothing
    how: str = ""  # formula, source, how to read it

    def figure(self) -> Figure | None:
        """The drawing, in the report's style."""
        if self.draw is None:
            return None
        with matplotlib.rc_context(STYLE):
            return self.draw()

    def files(self) -> dict[str, bytes]:
        """Ending of each file beside the page -> its content."""
        found = {"csv": self.data.to_csv(index=False).encode()}
        figure = self.figure()
        if figure is not None:
            found |= {"svg": _saved(figure, "svg"), "png": _saved(figure, "png")}
        return found


@dataclass
class Section:
    """Charts under one heading, or why there are none."""

    name: str
    title: str
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is missing, and why


def canvas(height: float, columns: int = 1, rows: int = 1, **settings: object) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width and its axes, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **settings)  # pyright: ignore[reportArgumentType]
    return figure, list(axes.ravel())


def inline_svg(svg: bytes, name: str, label: str) -> str:
    """SVG for the page: colours as CSS variables, ids of its own, an accessible name."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)


def _saved(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts have what matplotlib's lack
        if kind == "svg":
            figure.savefig(content, format="svg", metadata={"Date": None})
        else:
            figure.savefig(content, format="png", dpi=144, facecolor="white")
    return content.getvalue()
