"""A finished search and a partition as tables for a person."""

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from mtrec_ray.lake.manifest import Lake
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.partitions import Partition
from mtrec_ray.tuning.results import DONE, SearchResult, TrialRow
from mtrec_ray.tuning.space import GROUPS, moves_of

MAX_NAMES = 12
NUM_TITLES = 3


def search_tables(result: SearchResult) -> list[Table]:
    """Trials, the best first, and what the best is compared with."""
    goals = [goal.metric for goal in result.prepared.goals]
    keys = [key for key in dict.fromkeys(key for row in result.rows for key in row.params) if not _is_move(key)]
    front = "; dim: another equals or beats it in every goal" if len(goals) > 1 else ""
    caption = "; ".join(result.notes) + front
    table = Table(title=f"Search {result.uri}: best trial {result.best.trial_id}", caption=caption)
    for name in ("trial", "status", *goals, *keys):
        table.add_column(name, overflow="fold")
    sign = 1 if result.prepared.goals[0].mode == "min" else -1
    ranked = sorted(result.rows, key=lambda row: (row.status != DONE, sign * row.metrics.get(goals[0], np.inf * sign)))
    for row in ranked:
        figures = [_with_bounds(row, goal) for goal in goals]
        style = "bold" if row is result.best else None if len(goals) == 1 or row in result.front else "dim"
        settings = [_text(row, key) for key in keys]
        table.add_row(row.trial_id[-5:], row.status, *figures, *settings, style=style)
    return [table, *_fresh_seeds(result), *_against_random(result)]


def _fresh_seeds(result: SearchResult) -> list[Table]:
    """The best configuration with other seeds beside its trial."""
    if not result.fresh:
        return []
    table = Table(title="The best configuration again, with fresh seeds")
    for name in ("figure", "its trial", "fresh seeds", "inside the trial's interval"):
        table.add_column(name)
    for goal in result.prepared.goals:
        values = ", ".join(f"{figures[goal.metric]:.4f}" for figures in result.fresh)
        inside = f"{result.confirmed(goal.metric)} of {len(result.fresh)}"
        table.add_row(goal.metric, _with_bounds(result.best, goal.metric), values, inside)
    return [table]


def _against_random(result: SearchResult) -> list[Table]:
    """The candidate partitions, all else as in base, beside the mean of random ones: with as many groups, or of all."""
    metric, first = result.prepared.goals[0].metric, result.prepared.first
    candidates = {
        str(row.params[GROUPS]): row
        for row in result.rows
        if row.status == DONE and GROUPS in row.params and any(p.items() <= row.params.items() for p in first)
    }
    random = {name: row.metrics[metric] for name, row in candidates.items() if name.startswith("random")}
    if not random:
        return []
    num_groups = result.prepared.num_groups
    table = Table(title=f"Partitions by {metric}, all else alike")
    for name in ("partition", "groups", metric, "against the mean of random ones"):
        table.add_column(name)
    for name, row in sorted(candidates.items(), key=lambda item: -item[1].metrics[metric]):
        alike = [value for other, value in random.items() if num_groups[other] == num_groups[name]]
        against = "" if alike else f" (of {', '.join(sorted({str(num_groups[other]) for other in random}))} groups)"
        gain = row.metrics[metric] / float(np.mean(alike or list(random.values()))) - 1
        table.add_row(name, str(num_groups[name]), _with_bounds(row, metric), f"{100 * gain:+.1f}%{against}")
    return [table]


def partition_table(
    lake: Lake, partition: Partition, discoveries: np.ndarray, users: np.ndarray, evidence: Evidence | None
) -> Table:
    """Groups with territories, sizes, and why they belong together.

    Args:
        lake: of the territories and titles.
        partition: to show.
        discoveries: (N, T) in the window, by territory and title.
        users: (N,) training users.
        evidence: what the partition was made from; None where it was not made from any.
    """
    cosines = None if evidence is None else evidence.cosines()
    table = Table(title=f"Partition {partition.name}: {len(partition.group_names)} groups", show_lines=True)
    for name in ("group", "territories", "users", "discoveries", "cosine in / out", "discovers most above the others"):
        table.add_column(name, overflow="fold")
    group, names = np.array(partition.group), lake.territory_names()
    titles = pc.coalesce(lake.titles["name"], lake.titles["title_id"])  # pyright: ignore[reportAttributeAccessIssue]
    for index, name in enumerate(partition.group_names):
        own = group == index
        ranked = np.flatnonzero(own)[np.argsort(-discoveries.sum(axis=1)[own], kind="stable")]
        shown = ", ".join(names[t] for t in ranked[:MAX_NAMES])
        rest = f" and {len(ranked) - MAX_NAMES} more" if len(ranked) > MAX_NAMES else ""
        lifted = [str(titles[int(title)]) for title in most_lifted(discoveries, own)]
        table.add_row(
            name,
            shown + rest,
            f"{users[own].sum():,}",
            f"{discoveries[own].sum():,} ({discoveries[own].sum() / max(1, discoveries.sum()):.0%})",
            "-" if cosines is None else "{} / {}".format(*in_and_out(cosines, own)),
            ", ".join(lifted) or "-",
        )
    return table


def in_and_out(cosines: np.ndarray, own: np.ndarray) -> tuple[str, str]:
    """Mean cosine of a group's territories with each other, and with all others."""
    inside = cosines[np.ix_(own, own)][~np.eye(int(own.sum()), dtype=bool)]
    outside = cosines[np.ix_(own, ~own)]
    first, second = (f"{values.mean():+.2f}" if values.size else "-" for values in (inside, outside))
    return first, second


def most_lifted(discoveries: np.ndarray, own: np.ndarray) -> list[int]:
    """Titles of which a group discovers most above its share, in standard deviations; none of one territory alone."""
    inside, total = discoveries[own].sum(axis=0), discoveries.sum(axis=0)
    expected = total * discoveries[own].sum() / max(1, discoveries.sum())
    shared = (discoveries > 0).sum(axis=0) > 1
    lift = np.where(shared, (inside - expected) / np.sqrt(np.maximum(expected, 1.0)), -np.inf)
    best = np.argsort(-lift, kind="stable")[:NUM_TITLES]
    return [int(title) for title in best if lift[title] > 2]


def _with_bounds(row: TrialRow, metric: str) -> str:
    value, low, high = (row.metrics.get(metric + end) for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _is_move(key: str) -> bool:
    return key.startswith("move")


def _text(row: TrialRow, key: str) -> str:
    """A setting of a trial; a partition with the moves made in it, as in `taste:4, T001 to T007`."""
    value = row.params.get(key)
    if key == GROUPS:
        moves = (f"{territory} to {host}" for territory, host in moves_of(row.params) if territory != host)
        return ", ".join([str(value), *moves])
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
