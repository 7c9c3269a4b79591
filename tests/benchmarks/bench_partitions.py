"""Partition searches on planted tastes: what they find, cost, and gain on test users.

    python tests/benchmarks/bench_partitions.py [--users 20000] [--seeds 0] [--random 10]

Each seed builds a synthetic lake with planted taste groups across its regions, and then

1. times gradient affinity against one training run in the same process (CPU seconds, data reading included)
2. runs `mtrec search propensity` with 12 trials and splits its wall time
3. trains the chosen partition, the regions, one block for all and random balanced partitions with as many groups on the
   whole window, and scores the test users, which nothing above has read, on the days after it
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from mtrec_ray.config import validate_config
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.affinity import gradient_evidence
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialCache, trial_data
from mtrec_ray.tuning.partitions import at_random
from mtrec_ray.tuning.propensity_trial import PropensityTrial
from mtrec_ray.workers import Workers

METRIC = "pr_auc/weighted"
SPACE = {"model.groups": {"partitions": ["one", "regions", "volume:4", "taste:4", "affinity:4"], "random": 3}}


def mtrec(*words: str) -> float:
    """Run a command as a user would; returns its wall time in seconds."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "mtrec_ray", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"mtrec {' '.join(words)} failed: {done.stderr[-2000:]}")
    return time.monotonic() - started


def planted(seed: int) -> list[int]:
    """Taste group of each territory."""
    return SyntheticSource(SyntheticConfig(seed=seed, taste_groups="shuffled")).world.taste_group.tolist()


def affinity_cost(lake: Lake, seed: int) -> dict[str, float]:
    """CPU seconds of the evidence over those of a training run, and its Rand index."""
    config = validate_config(PropensityConfig, {"lake": lake.uri, "name": "cost", "kind": "baseline"})
    data = trial_data(lake, config.window.resolve(lake.manifest.calendar), None, 0)
    started = time.process_time()
    gradient_evidence(config, data)  # the first use of an optimizer imports for seconds
    started = time.process_time()
    evidence = gradient_evidence(config, data)
    groups = evidence.clusters(4)
    affinity_s = time.process_time() - started
    started = time.process_time()
    trial_after_the_window(lake, config, TrialCache()).advance()
    return {
        "affinity_fraction_of_a_run": affinity_s / (time.process_time() - started),
        "affinity_adjusted_rand": adjusted_rand_score(planted(seed), groups),
        "regions_adjusted_rand": adjusted_rand_score(planted(seed), make_groups("regions", lake.manifest).of_territory),
    }


def trial_after_the_window(lake: Lake, config: PropensityConfig, cache: TrialCache) -> PropensityTrial:
    """A trial on the whole window, validated once, on the days after it."""
    settings = {"name": "cost", "lake": lake.uri, "space": {}, "validation_days": 0, "validations": 1}
    search = validate_config(PropensitySearchConfig, settings)
    return PropensityTrial(config, cache, Workers(), search, lake.manifest.lake_hash)


def search(lake: Lake, folder: Path, seed: int) -> dict[str, float]:
    """A search of 12 trials: fraction of its wall time outside training steps."""
    settings = folder / "search.yaml"
    settings.write_text(yaml.safe_dump({"space": SPACE, "trials": 12, "validations": 3, "confirm": 0, "seed": seed}))
    flags = ["--lake", lake.uri, "--name", "found", "--searches", str(folder), "--config", str(settings), "--json"]
    wall_s = mtrec("search", "propensity", *flags)
    table = pd.read_csv(folder / "found" / "trials.csv")
    best = yaml.safe_load((folder / "found" / "best-config.yaml").read_text())["model"]["groups"]
    groups = make_groups(best, lake.manifest).of_territory
    files = [folder / "found" / "tune" / trial / "result.json" for trial in table["trial"]]
    reports = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    steps_s = sum(report["figures"]["steps_s"]["value"] for report in reports)
    return {
        "sweep_wall_s": wall_s,
        "sweep_outside_steps": 1 - steps_s / 2 / wall_s,  # two trials side by side
        "search_adjusted_rand": adjusted_rand_score(planted(seed), groups),
    }


def figures_of_test_users(lake: Lake, folder: Path, num_random: int, seed: int) -> dict[str, dict[str, float]]:
    """Partition -> `METRIC` of test users after the window with bounds, trained on all of the window."""
    territories = lake.territory_names()
    largest_first = -np.arange(len(territories))  # as the synthetic source names them
    partitions = {"found": str(yaml.safe_load((folder / "found" / "best-config.yaml").read_text())["model"]["groups"])}
    partitions |= {"regions": "regions", "one": "one"}
    for draw in range(num_random):
        group = at_random(largest_first, 4, seed, 100 + draw)
        document = {f"g{g}": [t for t, own in zip(territories, group, strict=True) if own == g] for g in range(4)}
        file = folder / f"random{draw}.yaml"
        file.write_text(yaml.safe_dump(document))
        partitions[f"random {draw}"] = str(file)
    usual = validate_config(PropensityConfig, {"lake": lake.uri, "name": "x"}).sample
    tested = {"test_fraction": 0.0, "validation_fraction": usual.test_fraction}  # the same users by the same hash
    figures, cache = {}, TrialCache()
    for name, groups in partitions.items():
        document = {"lake": lake.uri, "name": "tested", "seed": seed, "model": {"groups": groups}, "sample": tested}
        trial = trial_after_the_window(lake, validate_config(PropensityConfig, document), cache)
        trial.trainer.data = replace(trial.trainer.data, num_bootstrap=200)
        figures[name] = trial.advance()[METRIC]
    return figures


def measure(num_users: int, num_random: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = [f"source.users={num_users}", f"source.seed={seed}", "source.taste_groups=shuffled"]
        mtrec("lake", "build", "synthetic", "--out", f"{name}/lake", *(w for s in shape for w in ("--set", s)))
        lake = Lake.open(f"{name}/lake")
        found = affinity_cost(lake, seed) | search(lake, folder, seed)
        figures = figures_of_test_users(lake, folder, num_random, seed)
    random = [figure for key, figure in figures.items() if key.startswith("random")]
    for key in ("found", "regions", "one"):
        found |= {f"test/{key} {end}": value for end, value in figures[key].items()}
    return found | {
        "test/random mean": float(np.mean([figure["value"] for figure in random])),
        "test/random best": max(figure["value"] for figure in random),
        "test/random mean high": float(np.mean([figure["high"] for figure in random])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--random", type=int, default=10, help="random partitions that are tested")
    options = parser.parse_args()
    results = {seed: measure(options.users, options.random, seed) for seed in options.seeds}
    table = Table("figure", *(f"seed {seed}" for seed in results), title=f"Group partitions, {options.users:,} users")
    for key in next(iter(results.values())):
        table.add_row(key, *(f"{one[key]:.4g}" for one in results.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
