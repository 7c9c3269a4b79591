"""Every job as a Python function; the commands of `mtrec` call the same functions.

    import mtrec_ray as mt
    mt.build_lake(dataset="synthetic", out="lake", source={"users": 2000})
    run = mt.train_propensity(lake="lake", name="mtl", optim={"epochs": 2}, progress=True)
    run.metrics

A job takes a config object, or keyword settings: what a file for `--config` holds, checked alike (UserError). It uses
this process's Ray session, or starts a local one that stays for the next call. `progress=True` draws bars on stderr.
"""

# pyright: reportReturnType=false
# the bodies of the functions are what @job makes of them

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mtrec_ray.config import Config, validate_config

if TYPE_CHECKING:
    from mtrec_ray.console import JobResult, ProgressCallback
    from mtrec_ray.jobs.config import AuditConfig, BundleConfig, EvaluateConfig
    from mtrec_ray.jobs.lakes import LakeBuildConfig
    from mtrec_ray.jobs.quickstart_config import QuickstartConfig
    from mtrec_ray.jobs.runs import ListRunsConfig, ShowRunConfig
    from mtrec_ray.lake.build_config import LakeConfig
    from mtrec_ray.lake.embed_config import EmbedConfig
    from mtrec_ray.serving.config import PromoteConfig, RollbackConfig, ServeConfig, StoreLoadConfig
    from mtrec_ray.streams.config import PairsConfig
    from mtrec_ray.trainers.backbone_config import BackboneConfig
    from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
    from mtrec_ray.trainers.propensity_config import PropensityConfig
    from mtrec_ray.tuning.config import EliminatorsSearchConfig, PartitionConfig, PropensitySearchConfig

Progress: TypeAlias = "bool | ProgressCallback | None"
JobFunction = TypeVar("JobFunction", bound=Callable[..., Any])
CONFIGS: dict[str, str] = {}
"""Job -> its config class, as `module:Class`."""


def job(config_path: str, run: str) -> Callable[[JobFunction], JobFunction]:
    """Give a function without a body the job `run(config, progress=...)`.

    Both are named as `module:name` and imported at the first call. Keyword arguments of the function that are no
    settings are passed to `run`.
    """

    def decorate(function: JobFunction) -> JobFunction:
        name = function.__name__
        CONFIGS[name] = config_path
        keywords = set(inspect.signature(function).parameters) - {"config", "progress", "settings"}

        @wraps(function)
        def call(config: Config | None = None, *, progress: Progress = None, **settings: Any) -> Any:
            from mtrec_ray.console import progress_bars
            from mtrec_ray.lake.cluster import ray_session

            extra = {key: settings.pop(key) for key in keywords & set(settings)}
            if config is None:
                config = validate_config(config_class(name), settings)
            elif settings or not isinstance(config, config_class(name)):
                raise TypeError(f"{name} takes one {config_class(name).__name__}, or keyword settings")
            num_cpus = getattr(getattr(config, "runner", config), "num_cpus", None)
            bars = progress_bars() if progress is True else nullcontext(progress or None)
            with ray_session(num_cpus, keep=True), bars as callback:
                return resolve_name(run)(config, **extra, progress=callback)

        return call

    return decorate


def config_class(name: str) -> type[Config]:
    """The config class of a job by its function's name."""
    return resolve_name(CONFIGS[name])


@job("mtrec_ray.jobs.lakes:LakeBuildConfig", "mtrec_ray.jobs.lakes:build_from_source")
def build_lake(config: LakeBuildConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Build a lake from raw files: it exists complete or not at all.

    >>> mt.build_lake(dataset="movielens", raw="ml-1m", out="lake", download=True)
    """


@job("mtrec_ray.lake.build_config:LakeConfig", "mtrec_ray.lake.verify:check_lake")
def check_lake(config: LakeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Verify a lake: hashes, counts, schema, buckets and references; UserError if damaged.

    >>> mt.check_lake(lake="lake")
    """


@job("mtrec_ray.lake.build_config:LakeConfig", "mtrec_ray.lake.summary:show_lake")
def show_lake(config: LakeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show what a lake holds, territory by territory.

    >>> mt.show_lake(lake="lake").metrics
    """


@job("mtrec_ray.lake.embed_config:EmbedConfig", "mtrec_ray.lake.embed:embed_lake")
def embed_lake(config: EmbedConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Compute user and title vectors of a lake from its training window's events.

    >>> mt.embed_lake(lake="lake", text={"model": None}, interactions={"width": 64})
    """


@job("mtrec_ray.streams.config:PairsConfig", "mtrec_ray.jobs.pairs:summarise_pairs")
def show_pairs(config: PairsConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Count a sample's users, positives and negatives by territory (paper A, table 1).

    >>> mt.show_pairs(lake="lake", sample={"tau": 0.5}).metrics
    """


@job("mtrec_ray.trainers.propensity_config:PropensityConfig", "mtrec_ray.training.propensity:train_propensity")
def train_propensity(
    config: PropensityConfig | None = None, *, progress: Progress = None, **settings: Any
) -> JobResult:
    """Train a propensity model (paper A).

    >>> mt.train_propensity(lake="lake", name="mtl", kind="mtl", optim={"epochs": 2})
    """


@job("mtrec_ray.trainers.backbone_config:BackboneConfig", "mtrec_ray.training.backbone:train_backbone")
def train_backbone(config: BackboneConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Train a sequential backbone (paper B).

    >>> mt.train_backbone(lake="lake", name="bb", model={"kind": "sasrec"})
    """


@job("mtrec_ray.trainers.eliminators_config:EliminatorsConfig", "mtrec_ray.training.eliminators:train_eliminators")
def train_eliminators(
    config: EliminatorsConfig | None = None, *, progress: Progress = None, **settings: Any
) -> JobResult:
    """Train a backbone's eliminators (paper B), as parallel jobs.

    >>> mt.train_eliminators(backbone="runs/bb", name="el", combinations="gender,gender+age")
    """


@job("mtrec_ray.jobs.runs:ListRunsConfig", "mtrec_ray.jobs.runs:list_runs")
def list_runs(config: ListRunsConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """List the runs of a folder: state, input, metrics.

    >>> mt.list_runs(runs="runs").metrics
    """


@job("mtrec_ray.jobs.runs:ShowRunConfig", "mtrec_ray.jobs.runs:show_run")
def show_run(config: ShowRunConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show a run: settings, validations, loss over its steps.

    >>> mt.show_run(run="mtl")
    """


@job("mtrec_ray.jobs.config:EvaluateConfig", "mtrec_ray.jobs.evaluate:evaluate_propensity")
def evaluate(config: EvaluateConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Evaluate propensity runs: PR-AUC, and gains over the first run (paper A, tables 2, 3).

    >>> mt.evaluate(runs=["runs/base", "runs/mtl"], out="report").metrics
    """


@job("mtrec_ray.jobs.config:AuditConfig", "mtrec_ray.jobs.audit:audit")
def audit(config: AuditConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Measure what still leaks to attackers, on users no eliminator saw, and the cost.

    >>> mt.audit(run="runs/el", out="audit").metrics
    """


@job("mtrec_ray.jobs.config:BundleConfig", "mtrec_ray.jobs.bundle:make_bundle")
def make_bundle(config: BundleConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Bundle runs and their audit for serving, as safetensors, Parquet and JSON.

    >>> mt.make_bundle(run="runs/el", audit="audit", out="bundle")
    """


@job("mtrec_ray.tuning.config:PropensitySearchConfig", "mtrec_ray.tuning.propensity_search:search_propensity")
def search_propensity(
    config: PropensitySearchConfig | None = None, *, resume: bool = False, progress: Progress = None, **settings: Any
) -> JobResult:
    """Search a propensity model's settings and territory groups.

    Writes best-config.yaml, which `mtrec train propensity --config` reads. `resume` continues a stopped search; it
    reads Ray Tune's pickles, so only resume searches of your own.

    >>> mt.search_propensity(lake="lake", name="s", space={"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    """


@job("mtrec_ray.tuning.config:EliminatorsSearchConfig", "mtrec_ray.tuning.eliminators_search:search_eliminators")
def search_eliminators(
    config: EliminatorsSearchConfig | None = None, *, resume: bool = False, progress: Progress = None, **settings: Any
) -> JobResult:
    """Search lambda and the parts of eliminators: least leakage at a minimum accuracy.

    >>> mt.search_eliminators(backbone="runs/bb", name="l", space={"adversary.weight": [0.03, 0.1, 0.3]})
    """


@job("mtrec_ray.tuning.config:PartitionConfig", "mtrec_ray.tuning.show:show_partition")
def show_partition(config: PartitionConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show the groups of a partition: territories, sizes, evidence.

    >>> mt.show_partition(lake="lake", partition="taste:4")
    """


@job("mtrec_ray.serving.config:StoreLoadConfig", "mtrec_ray.serving.load:load_store")
def load_store(config: StoreLoadConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Write every user of a lake to the online store.

    Overwrites each user's stored history, also events appended since the lake was built; other users stay.

    >>> mt.load_store(lake="lake", store="redis://localhost:6379/0")
    """


@job("mtrec_ray.serving.config:ServeConfig", "mtrec_ray.commands.serve:serve")
def serve(config: ServeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Serve a bundle on this machine until interrupted; serving/serve.yaml does on a cluster.

    >>> mt.serve(bundle="bundle", store="store")
    """


@job("mtrec_ray.serving.config:PromoteConfig", "mtrec_ray.serving.promote:promote")
def promote(config: PromoteConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Make a bundle the live one if it passes its gates; endpoints load it by themselves.

    >>> mt.promote(bundle="bundle", pointer="live.json", gates={"max_leak": 0.03})
    """


@job("mtrec_ray.serving.config:RollbackConfig", "mtrec_ray.serving.promote:rollback")
def rollback(config: RollbackConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Make the bundle live that was so before the last promotion.

    >>> mt.rollback(pointer="live.json")
    """


@job("mtrec_ray.jobs.quickstart_config:QuickstartConfig", "mtrec_ray.jobs.quickstart:quickstart")
def quickstart(config: QuickstartConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Run everything: raw files to gains, audit and bundle.

    >>> mt.quickstart(dataset="synthetic", out="quickstart", seeds=1)
    """
