"""Drawings that several charts use: points with intervals, and a scale of ratios."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from mtrec_ray.reports.chart import INK, MARKERS, MUTED, SERIES

MAX_GAIN, MIN_GAIN = 1500.0, -90.0  # percent; what lies outside is drawn at the edge of the scale
GAIN_TICKS = (-90, -75, -50, -25, 0, 50, 100, 300, 700, 1500)


def interval_rows(
    axes: Axes,
    values: Sequence[float] | np.ndarray,
    lows: Sequence[float] | np.ndarray,
    highs: Sequence[float] | np.ndarray,
    series: int = 0,
    shift: float = 0.0,
    label: str | None = None,
    hollow: bool = False,
) -> None:
    """A point a row from the top, with its interval where there is one."""
    rows = np.arange(len(values)) + shift
    low, high, value = (np.asarray(of, dtype=float) for of in (lows, highs, values))
    color = SERIES[series % len(SERIES)]
    known = np.isfinite(low) & np.isfinite(high)
    axes.hlines(rows[known], low[known], high[known], color=color, linewidth=1.2)
    face = "none" if hollow else color
    marker = MARKERS[series % len(MARKERS)]
    axes.scatter(value, rows, s=22, marker=marker, facecolors=face, edgecolors=color, label=label, zorder=3)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names at the left of the rows, the first on top."""
    axes.set_yticks(np.arange(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def as_ratio(gains: Sequence[float] | np.ndarray) -> np.ndarray:
    """Gains in percent -> positions on the scale of ratios, those beyond it at its edge."""
    percent = np.clip(np.asarray(gains, dtype=float), MIN_GAIN, MAX_GAIN)
    return np.log2(1 + percent / 100)


def gain_scale(axes: Axes, largest: float, smallest: float) -> None:
    """An x axis of ratios, in percent: half as much is as far from 0 as twice as much."""
    ticks = spaced([tick for tick in GAIN_TICKS if smallest - 25 <= tick <= max(50, largest * 1.3)])
    axes.set_xticks(as_ratio(ticks), [f"{tick:+d}%" if tick else "0" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(0, color=INK, linewidth=0.8)


def spaced(ticks: Sequence[float], least: float = 0.13) -> list[float]:
    """Ticks around 0, so far apart (as a fraction of their span) that labels do not touch."""
    places = as_ratio(ticks)
    span, kept = float(places.max() - places.min()) or 1.0, [0.0]
    for tick in sorted(ticks, key=abs, reverse=True):
        if all(abs(float(as_ratio([tick])[0] - as_ratio([other])[0])) >= least * span for other in kept):
            kept.append(tick)
    return sorted(kept)


def percent_axis(axes: Axes) -> None:
    """Label the x axis in percent."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f}%" if value else "0"))


def zero_line(axes: Axes, at: float = 0.0) -> None:
    axes.axvline(at, color=INK, linewidth=0.8)


def note(axes: Axes, text: str) -> None:
    """A muted remark above the right end of the axes."""
    axes.text(1.0, 1.01, text, transform=axes.transAxes, ha="right", va="bottom", color=MUTED, fontsize=7.5)
