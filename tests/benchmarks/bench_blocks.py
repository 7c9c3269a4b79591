"""Group blocks on test users, each against baseline + upsampling: what they gain, and where they lose.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_blocks.py LAKE [LAKE ...] [--seeds 0 1 2] [--set optim.epochs=2] ...

In one process, trained once on the window and scored on the days after it. Gains are of the mean over territories, with
paired 95% intervals over users and seeds; a territory counts as worse if Holm's correction for all of the lake's leaves
it so (5%, one-sided). Territories of fewer than ten users with a positive are left out.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from mtrec_ray.config import load_config, validate_config
from mtrec_ray.evaluation.distinct_users import MIN_USERS
from mtrec_ray.evaluation.intervals import interval, mean_over_seeds, nan_mean, relative_gain
from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.trainers.propensity import MEASURES, PropensityScorer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.propensity_trial import PropensityTrial
from mtrec_ray.workers import Workers

BASELINE = "baseline"
LEVEL = 0.05


def replicates(lake: Lake, block: str, seed: int, settings: list[str], cache: TrialCache) -> dict[str, np.ndarray]:
    """Measure -> (territories, R) of the test users after the window; NaN where too few have a positive."""
    fixed = ["sample.test_fraction=0", "sample.validation_fraction=0.2"]  # the usual test users by the same hash
    of_block = {"kind": BASELINE} if block == BASELINE else {"kind": "mtl", "model.group_block": block}
    flags = {"lake": lake.uri, "name": "bench", "seed": seed, "sample.seed": seed} | of_block
    given = [one for one in settings if block != BASELINE or not one.startswith("model.groups=")]
    config = load_config(PropensityConfig, None, [*fixed, *given], flags)
    once = {"name": "bench", "lake": lake.uri, "space": {}, "validation_days": 0, "validations": 1}
    search = validate_config(PropensitySearchConfig, once)
    trial = PropensityTrial(config, cache, Workers(), search, lake.manifest.lake_hash)
    trial.advance()
    state = EvaluationState(EvaluationSettings(len(lake.manifest.territories), lake.titles.num_rows))
    scorer = PropensityScorer(trial.trainer.model, lake.title_embeddings(), trial.trainer.data.group_of_territory)
    for chunk in cache.validation(trial.data, config.sample, trial.data.buckets):
        logits = scorer.score(chunk)
        state.add(chunk.territory, chunk.keys, logits, chunk.labels, chunk.candidates, chunk.title_index)
    result = state.summarise()
    few = np.array([len(users) < MIN_USERS for users in result.positive_users])
    return {name: np.where(few[:, None], np.nan, result.metrics[name][:-1]) for name in MEASURES}


def num_worse(differences: np.ndarray) -> int:
    """Territories that are worse after Holm's correction: (territories, R) paired differences."""
    known = differences[np.isfinite(differences[:, 0])]
    p = np.sort(norm.cdf(known[:, 0] / np.nanstd(known[:, 1:], axis=1, ddof=1).clip(min=1e-12)))
    kept = p > LEVEL / (len(p) - np.arange(len(p)))
    return int(kept.argmax()) if kept.any() else len(p)


def compare(uri: str, seeds: list[int], settings: list[str], table: Table) -> None:
    """A row of the table for each model on one lake."""
    lake, cache = Lake.open(uri), TrialCache()
    names = (BASELINE, *GROUP_BLOCKS)
    found = {seed: {name: replicates(lake, name, seed, settings, cache) for name in names} for seed in seeds}
    for name in names:
        cells = []
        for measure in MEASURES:
            own, first = ([found[seed][one][measure] for seed in seeds] for one in (name, BASELINE))
            value = np.mean([nan_mean(one)[0] for one in own])
            pairs = list(zip(own, first, strict=True))
            gain = interval(mean_over_seeds([relative_gain(nan_mean(a), nan_mean(b)) for a, b in pairs]))
            worse = num_worse(mean_over_seeds([a - b for a, b in pairs]))
            shown = f"{gain.value:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
            cells += [f"{value:.4f}", *(["", ""] if name == BASELINE else [shown, f"{worse}"])]
        num_territories = int(np.isfinite(found[seeds[0]][name][MEASURES[0]][:, 0]).sum())
        table.add_row(uri.rstrip("/").rsplit("/", 1)[-1], str(num_territories), name, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lakes", nargs="+", help="lakes with embeddings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of `mtrec train propensity`")
    options = parser.parse_args()
    columns = [one for measure in MEASURES for one in (measure, "gain in %", "worse")]
    table = Table("lake", "territories", "block", *columns, title="Group blocks against baseline + upsampling")
    for uri in options.lakes:
        compare(uri, options.seeds, options.settings, table)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
