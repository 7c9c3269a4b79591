"""One HTML page with Optuna's own plots of a study, as SVG: nothing to load, nothing to install."""

import html
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import optuna
import optuna.visualization.matplotlib as draw

BY_GOAL = {
    "History": draw.plot_optimization_history,
    "Parallel coordinates": draw.plot_parallel_coordinate,
    "Importance": draw.plot_param_importances,
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}}
svg{{max-width:100%;height:auto}}</style>
</head><body><h1>{title}</h1>
{body}
</body></html>
"""


def plots_page(study: optuna.Study, metrics: list[str]) -> str:
    """History, parallel coordinates and importance of one goal; of two their Pareto front and each one's importance.

    A plot that these trials are too few or too much alike for is replaced by a sentence.
    """
    kinds: list[tuple[str, Callable[[], Any]]] = []
    if len(metrics) == 1:
        kinds += [(name, partial(plot, study, target_name=metrics[0])) for name, plot in BY_GOAL.items()]
        kinds.append(("Looks", partial(draw.plot_intermediate_values, study)))
    else:
        kinds.append(("Pareto front", partial(draw.plot_pareto_front, study, target_names=metrics)))
        for number, metric in enumerate(metrics):
            for name in BY_GOAL:
                kinds.append((f"{name} of {metric}", partial(_of, study, name, number, metric)))
    body = "\n".join(f"<h2>{html.escape(name)}</h2>\n{_svg(name, plot)}" for name, plot in kinds)
    return PAGE.format(title=f"Search over {html.escape(' and '.join(metrics))}", body=body)


def _of(study: optuna.Study, name: str, number: int, metric: str) -> Any:
    """One goal's plot; importance is that for low values of a target, so what is maximised is turned round."""
    most = study.directions[number] == optuna.study.StudyDirection.MAXIMIZE
    sign = -1.0 if name == "Importance" and most else 1.0
    return BY_GOAL[name](study, target=lambda trial: sign * trial.values[number], target_name=metric)


def _svg(name: str, plot: Callable[[], Any]) -> str:
    matplotlib.use("Agg")
    try:
        with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):  # fonts of the reader's
            warnings.simplefilter("ignore")  # Optuna's, of plots and conditional keys; matplotlib's, of its own font
            plot()
            text = io.StringIO()
            plt.gcf().set_size_inches(10, 6)
            plt.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    except (ValueError, RuntimeError) as error:  # Optuna: there is too little to draw; matplotlib: $...$ is no formula
        return f"<p>Nothing to draw: {html.escape(str(error))}</p>"
    finally:
        plt.close("all")
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)
