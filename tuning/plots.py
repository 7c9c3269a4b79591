"""One HTML page with Optuna's own plots of a study as inline SVG: it loads nothing."""

import html
import io
import warnings
from collections.abc import Callable
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
    """Plots of each goal, and the validations of a single goal or the front of two.

    A sentence replaces a plot for which the trials are too few or too similar.
    """
    if len(metrics) == 1:
        plots = [_svg(name, plot, study, target_name=metrics[0]) for name, plot in BY_GOAL.items()]
        plots.append(_svg("Validations", draw.plot_intermediate_values, study))
    else:
        plots = [_svg("Pareto front", draw.plot_pareto_front, study, target_names=metrics)]
        for number, metric in enumerate(metrics):
            for name, plot in BY_GOAL.items():
                # Importance is that for low values, so values to maximise change their sign.
                maximise = study.directions[number] == optuna.study.StudyDirection.MAXIMIZE
                sign = -1.0 if name == "Importance" and maximise else 1.0
                target = lambda trial, number=number, sign=sign: sign * trial.values[number]  # noqa: E731
                plots.append(_svg(f"{name} of {metric}", plot, study, target=target, target_name=metric))
    return PAGE.format(title=f"Search over {html.escape(' and '.join(metrics))}", body="\n".join(plots))


def _svg(name: str, plot: Callable[..., Any], study: optuna.Study, **options: Any) -> str:
    matplotlib.use("Agg")
    heading, text = f"<h2>{html.escape(name)}</h2>\n", io.StringIO()
    try:
        with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):  # the reader's fonts
            warnings.simplefilter("ignore")  # Optuna's of conditional keys, matplotlib's of missing glyphs
            plot(study, **options)
            plt.gcf().set_size_inches(10, 6)
            plt.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    except (ValueError, RuntimeError) as error:  # Optuna: too few trials; matplotlib: $...$ is no formula
        return f"{heading}<p>Nothing to draw: {html.escape(str(error))}</p>"
    finally:
        plt.close("all")
    svg = text.getvalue()
    labelled = f'<svg role="img" aria-label="{html.escape(name)}"'
    return heading + svg[svg.index("<svg") :].replace("<svg", labelled, 1)
