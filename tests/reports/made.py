"""Folders of results with random figures, as evaluations, audits, runs and searches write them."""

import json
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

VARIANTS = ("baseline", "baseline+upsampling", "mtl+upsampling")
BIAS = ("arp", "popularity_lift", "novelty", "aplt", "aclt", "pop_rsp", "pop_reo", "gini", "local_js", "local_fraction")


def write_evaluation(
    folder: Path, territories: int = 5, days: int = 2, variants: tuple[str, ...] = VARIANTS, seed: int = 0
) -> Path:
    """All files of an evaluation; the last territory has no positive."""
    rng = np.random.default_rng(seed)
    names = [f"T{number:03d}" for number in range(1, territories + 1)]
    folder.mkdir(parents=True)
    runs = {f"{v}-s0": {"variant": v, "seed": 0, "weights_hash": v} for v in variants}
    document = {"version": 1, "protocol": {"num_negatives": None, "cohort": "held_out"}, "runs": runs}
    (folder / "metrics.json").write_text(json.dumps(document | {"baseline": variants[0], "references": {}}))
    counts, metrics, bias, titles, scores = [], [], [], [], []
    for day in map(str, range(1, days + 1)):
        for name in [*names, "all"]:
            users = int(rng.integers(20, 2000))
            positives = 0 if name == names[-1] else int(rng.integers(1, users))
            counts.append(("held_out", day, name, users, users * 50, positives, 0))
    for variant in variants:
        for day in [*map(str, range(1, days + 1)), "average"]:
            for name in [*names[:-1], "all", "mean"]:
                key = ("held_out", variant, day, name)
                metrics.append((*key, "pr_auc", None, *_interval(rng, 0.1, 0.02)))
                if variant != variants[0]:
                    metrics.append((*key, "pr_auc_gain", variants[0], *_interval(rng, 20.0, 40.0)))
            if variant != variants[0]:
                for title, scope in (
                    ("Local 1", "local"),
                    ("World 1", "global"),
                    ("local_mean", ""),
                    ("global_mean", ""),
                ):
                    found = _interval(rng, 5.0, 10.0)
                    titles.append(("held_out", variant, day, title, "pr_auc_gain", variants[0], *found, scope, 12))
    for variant in (*variants, "popularity"):
        for metric in (*BIAS, "local_fraction_history"):
            key = ("held_out", variant, "average", "all")
            bias.append((*key, metric, None, *_interval(rng, 0.5, 0.1)))
            if variant != variants[0]:
                bias.append((*key, f"{metric}_difference", variants[0], *_interval(rng, 0.0, 0.1)))
        for title, scope in (("Local 1", "local"), ("World 1", "global")):
            edges = np.linspace(0, 0.5, 11)
            users = rng.integers(0, 50, 10)
            scores += [(title, scope, variant, *row) for row in zip(edges[:-1], edges[1:], users, strict=True)]
    of_day, bounds = ["cohort", "variant", "day"], ["value", "low", "high"]
    _csv(folder / "territory_counts.csv", counts, ["cohort", "day", "territory", "num_users", "num_candidates",
                                                  "num_positives", "num_outside"])  # fmt: skip
    _csv(folder / "territory_metrics.csv", metrics, [*of_day, "territory", "metric", "over", *bounds])
    _csv(folder / "popularity_bias.csv", bias, [*of_day, "territory", "metric", "over", *bounds])
    _csv(folder / "title_metrics.csv", titles, [*of_day, "title", "metric", "over", *bounds, "scope", "num_positives"])
    _csv(folder / "title_scores.csv", scores, ["title", "scope", "variant", "low", "high", "users"])
    return folder


def audit_document(attributes: int = 3, seed: int = 0, lists: bool = True) -> dict[str, Any]:
    """An audit of every combination of so many attributes."""
    rng = np.random.default_rng(seed)
    names = [f"attribute{number}" for number in range(1, attributes + 1)]
    sets = [(), *chain.from_iterable(combinations(names, size) for size in range(1, attributes + 1))]
    kinds = ["vectors", *(["vectors_of_histories", "lists_watched_kept", "lists_watched_left_out"] if lists else [])]

    def leakage(kinds: list[str]) -> dict[str, Any]:
        return {
            kind: {
                name: {"auc": _named(_interval(rng, 0.55, 0.03)) | {"null_high": 0.53, "chance": 0.5}} for name in names
            }
            for kind in kinds
        }

    def accuracy() -> dict[str, Any]:
        found = {name: _named(_interval(rng, -2.0, 1.0)) for name in ("full_ndcg_change", "ndcg_change")}
        return found | {"full_ndcg@10": _named(_interval(rng, 0.15, 0.01))}

    gap = {"full_ndcg@10": {"ratio": 0.9, "value": 0.02, "null_high": 0.03, "ratio_low": 0.8, "ratio_high": 1.1}}
    cell = {"values": ["a"], "num_users": 90, "full_ndcg@10": _named((0.15, 0.1, 0.2))}
    cell["ndcg@10"] = cell["full_ndcg@10"]
    of_sets = {
        "+".join(hides) or "none": {
            "hides": list(hides),
            "leakage": leakage(kinds),
            "written": {name: _named((0.1, 0.05, 0.2)) | {"writes_value": name == names[0]} for name in hides},
            "accuracy": accuracy(),
            "ndcg_gaps": dict.fromkeys(names, gap),
            "ndcg_of_groups": {names[0]: [cell]},
        }
        for hides in sets
    }
    values = [{"value": value, "num_users": 500, "num_audit_users": 150} for value in ("a", "b")]
    unknown = {"value": "unknown", "num_users": 9, "num_audit_users": 3}
    span = {"first": "2022-01-01T00:00:00+00:00", "last": "2022-04-01T00:00:00+00:00"}
    return {
        "version": 2,
        "run": "runs/eliminators",
        "weights_hash": "ab" * 32,
        "data": {"lake": "lake", "lake_hash": "cd" * 32, "events": span, "held_out_events": span},
        "num_users": 1009,
        "num_audit_users": 303,
        "settings": {"num_folds": 5, "num_repeats": 1, "num_permutations": 20, "num_bootstrap": 200, "seed": 0},
        "attributes": {name: {"attacked": True, "values": values, "unknown": unknown, "notes": []} for name in names},
        "combinations": of_sets,
        "references": {"popularity": {"hides": [], "leakage": leakage(["lists_watched_left_out"])}} if lists else {},
        "not_tested": {"attributes": {"height": "one value alone"}, "attacks": ["scores of titles"]},
    }


def write_audit(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(audit_document(**settings)))
    return folder


def write_run(folder: Path, lake: str = "lake", **config: Any) -> Path:
    """A run of 20 logged steps of a second, half of it in steps, and one validation."""
    folder.mkdir(parents=True)
    document = {"kind": "propensity", "status": "done", "lake_hash": lake, "config": {"name": folder.name} | config}
    (folder / "run.json").write_text(json.dumps(document))
    lines = [
        {"step": step, "seconds": float(step), "train/loss": 1 / step, "train/examples_per_s": 1000.0}
        | {"train/step_s": 0.5, "train/data_wait_s": 0.3}
        for step in range(1, 21)
    ]
    lines.append({"step": 20, "seconds": 20.0, "val/ndcg@10": 0.3})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"cut')
    return folder


def write_search(folder: Path, goals: dict[str, str], trials: int = 12, seed: int = 0) -> Path:
    """Trials whose first goal is the learning rate's distance from 0.01."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"version": 1, "goals": goals}))
    rates, blocks = 10 ** rng.uniform(-4, -1, trials), rng.choice(["dense", "hierarchical"], trials)
    rows = [(f"t{n}", "done", 1, rates[n], blocks[n]) for n in range(trials)]
    rows.append(("t_failed", "failed", 0, 0.5, "dense"))
    figures = [
        (f"t{n}", goal, abs(np.log10(rates[n]) + 2) if number == 0 else rng.uniform(0, 1))
        for n in range(trials)
        for number, goal in enumerate(goals)
    ]
    _csv(folder / "trials.csv", rows, ["trial", "status", "validations", "optim.lr", "model.group_block"])
    _csv(folder / "metrics.csv", figures, ["trial", "metric", "value"])
    return folder


def _interval(rng: np.random.Generator, mean: float, spread: float) -> tuple[float, float, float]:
    value, half = rng.normal(mean, spread), abs(rng.normal(0, spread))
    return value, value - half, value + half


def _named(bounds: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), bounds, strict=True))


def _csv(path: Path, rows: list[tuple[Any, ...]], columns: list[str]) -> None:
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
