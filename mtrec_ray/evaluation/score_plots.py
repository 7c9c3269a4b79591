"""Paper A, figure 2: how each model scores a title over its users."""

import io
from collections.abc import Mapping

import numpy as np

from mtrec_ray.evaluation.score_grid import ScoreGrid
from mtrec_ray.files import write_file


def title_score_figure(histograms: Mapping[str, np.ndarray], grid: ScoreGrid, title: str, num_bars: int = 40):
    """Normalised user histograms of one title's scores, one outline per model; returns a `matplotlib.figure.Figure`.

    Args:
        histograms: model name -> (2, num_bins) counts of users, negatives and positives.
        grid: of the histograms.
        title: heading.
        num_bars: approximate number of bars over the occupied range.

    Raises:
        ValueError: no model, or a title that was offered to no user.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = {name: histogram.sum(axis=0) for name, histogram in histograms.items()}
    occupied = np.flatnonzero(sum(counts.values())) if counts else np.array([])
    if not len(occupied):
        raise ValueError(f"no scores of title {title!r} to draw")
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    cuts = np.unique(np.linspace(first, last, num_bars + 1).round().astype(int))
    finite = grid.edges()[1:-1]
    edges = grid.edges()[cuts].clip(finite[0], finite[-1])
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, count in counts.items():
        users = np.add.reduceat(count[first:last], cuts[:-1] - first)
        axes.stairs(users / max(1, users.sum()), edges, label=name)
    axes.set(title=title, xlabel="logit", ylabel="fraction of users")
    axes.legend(frameon=False)
    return figure


def write_figure(figure, uri: str) -> None:
    """Write a figure as PNG to a local path or `pyarrow.fs` URI, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(uri, buffer.getvalue())
