"""Paper A's tables 1 to 3 and figure 2: counts, gains by territory, titles, scores."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false
# the stubs of pandas know no columns of rows, and few results of selections

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import INK, MUTED, SERIES, Chart, Section, canvas
from mtrec_ray.reports.inputs import Folder, Inputs
from mtrec_ray.reports.marks import MAX_GAIN, MIN_GAIN, as_ratio, gain_scale, interval_rows, name_rows, note

AVERAGE, POOLED, MACRO = "average", "all", "mean"
LOCAL, GLOBAL = "local_mean", "global_mean"
MAX_ROWS = 40  # territories with a row of their own in a drawing; more are drawn by rank
NUM_NAMED = 6  # best and worst that a drawing by rank names
MAJOR_FRACTION = 0.8  # of the positives, in the fewest territories that hold so many


def territories_section(inputs: Inputs) -> Section:
    """All charts of the first evaluation."""
    evaluations = inputs.of("evaluation")
    if not evaluations:
        fix = "`mtrec evaluate propensity RUN... --out FOLDER` makes one; name that folder"
        return Section("territories", "Territories", notes=[f"No evaluation was given: {fix}."])
    section = Section("territories", "Territories")
    evaluation = evaluations[0]
    if len(evaluations) > 1:
        others = ", ".join(folder.name for folder in evaluations[1:])
        section.notes.append(f"Drawn from {evaluation.name} alone, as popularity bias is; see Comparison for {others}.")
    metrics = evaluation.table("territory_metrics")
    if metrics is None:
        section.notes.append(f"{evaluation.uri} has no territory_metrics.csv: no positive on any day.")
        return section
    gains = territory_gains(evaluation, metrics)
    counts = evaluation.table("territory_counts")
    if len(gains):
        section.charts.append(gain_chart(evaluation, gains))
        if counts is not None:
            section.charts += [size_chart(evaluation, gains, counts)]
    else:
        section.notes.append("One model alone was evaluated: there is no gain to draw. Evaluate a baseline beside it.")
    if counts is not None:
        section.charts.append(count_chart(counts, cohort_of(evaluation)))
        section.notes += empty_notes(counts, cohort_of(evaluation))
    titles, scores = evaluation.table("title_metrics"), evaluation.table("title_scores")
    if titles is not None and len(gains):
        section.charts += title_charts(evaluation, titles)
    if scores is not None:
        section.charts.append(score_chart(scores))
    return section


def cohort_of(evaluation: Folder) -> str:
    """The test users that a report shows."""
    return str(evaluation.document["protocol"]["cohort"])


def models_of(evaluation: Folder) -> list[str]:
    """Variants with a model, in the order evaluated."""
    return list(dict.fromkeys(run["variant"] for run in evaluation.document["runs"].values()))


def territory_gains(evaluation: Folder, metrics: pd.DataFrame) -> pd.DataFrame:
    """PR-AUC gains over the baseline: variant, day, territory, value, low, high."""
    baseline = evaluation.document["baseline"]
    chosen = metrics[
        (metrics["metric"] == "pr_auc_gain")
        & (metrics["over"] == baseline)
        & (metrics["cohort"] == cohort_of(evaluation))
        & metrics["variant"].isin(models_of(evaluation))
    ]
    return chosen.reindex(columns=["variant", "day", "territory", "value", "low", "high"]).reset_index(drop=True)


def averages(gains: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Mean over days of each territory, best first, without the means."""
    rows = gains[(gains["variant"] == variant) & (gains["day"] == AVERAGE)]
    rows = rows[~rows["territory"].isin([POOLED, MACRO])].dropna(subset=["value"])
    return rows.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)


def gain_chart(evaluation: Folder, gains: pd.DataFrame) -> Chart:
    """Paper A's table 2: sorted, losers as visible as winners."""
    baseline, variants = evaluation.document["baseline"], list(dict.fromkeys(gains["variant"]))
    sentences = [gain_sentence(gains, variant, baseline) for variant in variants]
    shown = gains[gains["day"] == AVERAGE].copy()
    days = daily_texts(gains)
    shown["gain"] = [
        _gain_text(row.value, row.low, row.high) + days.get((row.variant, row.territory), "")
        for row in shown.itertuples()
    ]
    order = [*averages(gains, variants[-1])["territory"], POOLED, MACRO]
    table = shown.pivot(index="territory", columns="variant", values="gain").reindex(index=order, columns=variants)
    return Chart(
        "territory_gains",
        f"Gain in PR-AUC over {baseline}, territory by territory",
        " ".join(sentences),
        gains,
        lambda: draw_gains(gains, variants),
        table.fillna("no positives").reset_index(),
        "Paper A, table 2. Gain = 100 x (PR-AUC / PR-AUC of the baseline - 1), the mean over days"
        f"{', in the table with each day in brackets' if days else ''}; "
        f"{'' if len(order) - 2 > MAX_ROWS else 'small dots are single days; '}"
        "lines are 95% intervals by bootstrap over users, none below ten users with a positive. The scale is one of "
        "ratios: half as much is as far from 0 as twice as much; what lies beyond "
        f"{MIN_GAIN:+.0f}% or {MAX_GAIN:+.0f}% is drawn at its edge. "
        f"{POOLED}: users of all territories; {MACRO}: mean over territories.",
    )


def daily_texts(gains: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(variant, territory) -> the gain of each day; nothing where there is one day."""
    days = [day for day in dict.fromkeys(gains["day"]) if day != AVERAGE]
    if len(days) < 2:
        return {}
    found = {(row.variant, row.territory, row.day): row.value for row in gains.itertuples()}
    texts = {}
    for variant, territory in dict.fromkeys(zip(gains["variant"], gains["territory"], strict=True)):
        values = [found.get((variant, territory, day), np.nan) for day in days]
        texts[variant, territory] = f" [{', '.join(f'{v:+.0f}' if np.isfinite(v) else 'none' for v in values)}]"
    return texts


def gain_sentence(gains: pd.DataFrame, variant: str, baseline: str) -> str:
    """How many territories win and lose, and how many of them beyond their interval."""
    rows = averages(gains, variant)
    up, down = int((rows["value"] > 0).sum()), int((rows["value"] < 0).sum())
    sure_up, sure_down = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    return (
        f"{variant} is better than {baseline} in {up} of {len(rows)} territories (in {sure_up} beyond the 95% "
        f"interval) and worse in {down} (in {sure_down})."
    )


def draw_gains(gains: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """A panel a variant: rows of territories, or ranks where there are many."""
    rows = {variant: averages(gains, variant) for variant in variants}
    order = list(rows[variants[-1]]["territory"])
    values = np.concatenate([frame[["value", "low", "high"]].to_numpy(dtype=float).ravel() for frame in rows.values()])
    largest, smallest = np.nanmax(values, initial=0.0), np.nanmin(values, initial=0.0)
    if len(order) > MAX_ROWS:
        return _draw_by_rank(rows, largest, smallest)
    means = [name for name in (POOLED, MACRO) if name in set(gains["territory"])]
    figure, axes = canvas(0.9 + 0.2 * (len(order) + len(means)), len(variants), sharey=True)
    for index, (axis, variant) in enumerate(zip(axes, variants, strict=True)):
        of = gains[gains["variant"] == variant]
        average = of[of["day"] == AVERAGE].set_index("territory").reindex([*order, *means])
        place = {name: row for row, name in enumerate(order)}
        daily = of[(of["day"] != AVERAGE) & of["territory"].isin(order)].dropna(subset=["value"])
        axis.scatter(as_ratio(daily["value"].to_numpy()), daily["territory"].map(place), s=4, color=MUTED)
        interval_rows(axis, *(as_ratio(average[name].to_numpy()) for name in ("value", "low", "high")), series=index)
        name_rows(axis, [*order, *means])
        axis.axhline(len(order) - 0.5, color=INK, linewidth=0.5)
        axis.set_title(variant)
        gain_scale(axis, largest, smallest)
    return figure


def _draw_by_rank(rows: dict[str, pd.DataFrame], largest: float, smallest: float) -> Figure:
    figure, axes = canvas(1.0 + 2.4 * len(rows), 1, len(rows), sharex=True)
    for index, (axis, (variant, frame)) in enumerate(zip(axes, rows.items(), strict=True)):
        rank = np.arange(1, len(frame) + 1)
        value, low, high = (as_ratio(frame[name].to_numpy()) for name in ("value", "low", "high"))
        known = np.isfinite(low)
        axis.vlines(rank[known], low[known], high[known], color=SERIES[index % len(SERIES)], linewidth=0.8, alpha=0.6)
        axis.scatter(rank, value, s=6, color=SERIES[index % len(SERIES)], zorder=3)
        ticks = [tick for tick in (-75, -50, 0, 100, 300, 700) if smallest - 25 <= tick <= max(100, largest)]
        axis.set_yticks(as_ratio(ticks), [f"{tick:+d}%" if tick else "0" for tick in ticks])
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set_title(variant)
        names = list(frame["territory"])
        ends = f"best: {', '.join(names[:NUM_NAMED])}; worst: {', '.join(names[: -NUM_NAMED - 1 : -1])}"
        note(axis, ends)
    axes[-1].set_xlabel("territories, by rank")
    return figure


def majors(counts: pd.DataFrame, cohort: str) -> set[str]:
    """The fewest territories that hold `MAJOR_FRACTION` of the positives."""
    rows = counts[(counts["cohort"] == cohort) & ~counts["territory"].isin([POOLED])]
    positives = rows.groupby("territory", sort=False)["num_positives"].sum().sort_values(ascending=False, kind="stable")
    before = positives.cumsum() - positives
    return set(positives.index[before < MAJOR_FRACTION * positives.sum()])


def size_chart(evaluation: Folder, gains: pd.DataFrame, counts: pd.DataFrame) -> Chart:
    """Gains of minor and major territories: paper A expects more of minor ones."""
    variants, big = list(dict.fromkeys(gains["variant"])), majors(counts, cohort_of(evaluation))
    rows = pd.concat([averages(gains, variant) for variant in variants])
    rows["size"] = np.where(rows["territory"].isin(big), "major", "minor")
    parts = []
    for variant in variants:
        median = rows[rows["variant"] == variant].groupby("size")["value"].median()
        words = [f"{median[size]:+.1f}% in {size} territories" for size in ("minor", "major") if size in median]
        parts.append(f"{variant}: median gain {', '.join(words)}.")
    share = f"{MAJOR_FRACTION:.0%}"

    def draw() -> Figure:
        figure, axes = canvas(0.7 + 0.42 * len(variants))
        axis = axes[0]
        for series, size in enumerate(("minor", "major")):
            for row, variant in enumerate(variants):
                found = as_ratio(rows[(rows["variant"] == variant) & (rows["size"] == size)]["value"].to_numpy())
                height = np.full(len(found), row + 0.18 * (2 * series - 1))
                label = size if row == 0 else None
                axis.scatter(found, height, s=16, color=SERIES[series], marker="os"[series], alpha=0.6, label=label)
                if len(found):
                    axis.vlines(
                        np.median(found), row + 0.36 * (series - 1), row + 0.36 * series, color=INK, linewidth=2
                    )
        name_rows(axis, variants)
        gain_scale(axis, float(rows["value"].max()), float(rows["value"].min()))
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    return Chart(
        "minor_and_major",
        "Minor and major territories",
        " ".join(parts),
        rows[["variant", "territory", "size", "value", "low", "high"]],
        draw,
        how=f"A point is a territory's mean gain over days, a bar the median. Major: the fewest territories that hold "
        f"{share} of the positives ({len(big)} of {rows['territory'].nunique()}).",
    )


def count_chart(counts: pd.DataFrame, cohort: str) -> Chart:
    """Paper A's table 1."""
    rows = counts[counts["cohort"] == cohort]
    shown = rows.groupby("territory", sort=False)[["num_users", "num_candidates", "num_positives"]].sum()
    shown = shown.sort_values("num_positives", ascending=False, kind="stable")
    total = shown.loc[POOLED] if POOLED in shown.index else shown.sum()
    days = rows["day"].nunique()
    shown["positives in a million"] = 1_000_000 * shown["num_positives"] / shown["num_candidates"].clip(lower=1)
    names = {"num_users": "users x days", "num_candidates": "pairs scored", "num_positives": "positives"}
    return Chart(
        "counts",
        "What the figures rest on",
        f"{int(total['num_positives']):,} first-time discoveries among {int(total['num_candidates']):,} pairs of "
        f"{int(total['num_users']):,} users and days ({days} {'day' if days == 1 else 'days'}).",
        rows,
        None,
        _formatted(shown.rename(columns=names)).reset_index(),
        "Paper A, table 1, of the test users.",
    )


def empty_notes(counts: pd.DataFrame, cohort: str) -> list[str]:
    """Territories of which nothing can be drawn."""
    rows = counts[counts["cohort"] == cohort].groupby("territory", sort=False)["num_positives"].sum()
    empty = [str(name) for name, count in rows.items() if count == 0 and name != POOLED]
    listed = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
    return [f"Without a positive on any day, so without a figure: {listed}."] if empty else []


def title_charts(evaluation: Folder, titles: pd.DataFrame) -> list[Chart]:
    """Paper A's table 3: gains of local and comparable global titles."""
    baseline = evaluation.document["baseline"]
    rows = titles[
        (titles["metric"] == "pr_auc_gain")
        & (titles["over"] == baseline)
        & (titles["cohort"] == cohort_of(evaluation))
        & (titles["day"] == AVERAGE)
        & titles["variant"].isin(models_of(evaluation))
    ]
    means = rows[rows["title"].isin([LOCAL, GLOBAL])].dropna(subset=["value"])
    if means.empty:
        return []
    variants = list(dict.fromkeys(means["variant"]))
    found = {(row.variant, row.title): row for row in means.itertuples()}
    parts = []
    for variant in variants:
        pair = [(kind, found.get((variant, name))) for kind, name in (("local", LOCAL), ("global", GLOBAL))]
        words = [f"{kind} titles {_gain_text(row.value, row.low, row.high)}" for kind, row in pair if row is not None]
        parts.append(f"{variant}: {', '.join(words)}.")
    single = rows[~rows["title"].isin([LOCAL, GLOBAL])].copy()
    positives = single.groupby("title")["num_positives"].first()
    parts.append(f"Of {len(positives)} titles with {positives.min():.0f} to {positives.max():.0f} positives.")

    def draw() -> Figure:
        figure, axes = canvas(0.8 + 0.4 * len(variants))
        for series, name in enumerate((LOCAL, GLOBAL)):
            of = means[means["title"] == name].set_index("variant").reindex(variants)
            shift = 0.15 * (2 * series - 1)
            label = name.removesuffix("_mean")
            columns = (as_ratio(of[column].to_numpy()) for column in ("value", "low", "high"))
            interval_rows(axes[0], *columns, series=series, shift=shift, label=label)
        name_rows(axes[0], variants)
        gain_scale(axes[0], float(np.nanmax(means[["value", "high"]])), float(np.nanmin(means[["value", "low"]])))
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    single["gain"] = [_gain_text(row.value, row.low, row.high) for row in single.itertuples()]
    table = single.pivot_table(
        index=["scope", "title", "num_positives"], columns="variant", values="gain", aggfunc="first", sort=False
    )
    return [
        Chart(
            "local_and_global_titles",
            "Local titles and comparable global ones",
            " ".join(parts),
            rows,
            draw,
            table.reset_index().rename(columns={"num_positives": "positives"}),
            f"Paper A, table 3: mean gain in PR-AUC over {baseline}, title by title, of one territory's users; for "
            "each local title the global one whose positives are nearest.",
        )
    ]


def score_chart(scores: pd.DataFrame) -> Chart:
    """Paper A's figure 2: users by their propensity score of a title."""
    names, variants = list(dict.fromkeys(scores["title"])), list(dict.fromkeys(scores["variant"]))
    middles = (scores["low"] + scores["high"]) / 2
    weighted = scores.assign(sum=middles * scores["users"]).groupby(["title", "variant"], sort=False)[["sum", "users"]]
    total = weighted.sum()
    means = total["sum"] / total["users"]
    scope = scores.groupby("title", sort=False)["scope"].first()
    parts = []
    for title in names:
        words = [f"{means[title, variant]:.3f} by {variant}" for variant in variants if (title, variant) in means.index]
        parts.append(f"{title} ({scope[title]}): mean score {', '.join(words)}.")

    def draw() -> Figure:
        columns = 2 if len(names) > 1 else 1
        lines = -(-len(names) // columns)
        figure, axes = canvas(0.8 + 2.0 * lines, columns, lines)
        for axis, title in zip(axes, names, strict=False):
            for series, variant in enumerate(variants):
                of = scores[(scores["title"] == title) & (scores["variant"] == variant)].sort_values("low")
                if len(of):
                    edges = [*of["low"], of["high"].iloc[-1]]
                    style = ("-", "--", ":", "-.")[series % 4]
                    share = of["users"] / max(1, of["users"].sum())
                    axis.stairs(share, edges, color=SERIES[series % len(SERIES)], linestyle=style, label=variant)
            axis.set_title(f"{title} ({scope[title]})")
            axis.set_xlabel("propensity score")
            axis.set_ylabel("fraction of users")
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
        return figure

    return Chart(
        "title_scores",
        "Scores of single titles",
        " ".join(parts),
        scores,
        draw,
        how="Paper A, figure 2: test users of the last day by the score that a model gives them for the title, a "
        "probability among the pairs trained on (alpha negatives for each positive); those of the most watched local "
        "and global titles. The last bin holds all higher scores.",
    )


def _gain_text(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "no value"
    return f"{value:+.1f}%" + (f" ({low:+.1f} to {high:+.1f})" if np.isfinite(low) else "")


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    """Integers with commas, others with two digits."""
    return table.map(lambda value: f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}")
