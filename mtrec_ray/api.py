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
    from mtrec_ray.jobs.quickstart_config import QuickstartConfig
    from mtrec_ray.jobs.runs import ListRunsConfig, ShowRunConfig
    from mtrec_ray.lake.config import EmbedConfig, LakeBuildConfig, LakeConfig
    from mtrec_ray.reports.config import ReportConfig
    from mtrec_ray.serving.config import PromoteConfig, RollbackConfig, ServeConfig, StoreLoadConfig
    from mtrec_ray.sources.init import InitConfig
    from mtrec_ray.streams.config import PairsConfig
    from mtrec_ray.trainers.backbone_config import BackboneConfig
    from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
    from mtrec_ray.trainers.propensity_config import PropensityConfig
    from mtrec_ray.tuning.config import EliminatorsSearchConfig, PartitionConfig, PropensitySearchConfig

Progress: TypeAlias = "bool | ProgressCallback | None"
JobFunction = TypeVar("JobFunction", bound=Callable[..., Any])
CONFIGS: dict[str, str] = {}  # job -> its config class, as `module:Class` below mtrec_ray


def job(config_path: str, run: str) -> Callable[[JobFunction], JobFunction]:
    """Give a function without a body the job `run(config, progress=...)`.

    Both are named as `module:name` below mtrec_ray and imported at the first call. Keyword arguments of the function
    that are no settings are passed to `run`.
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
                return resolve_name(f"mtrec_ray.{run}")(config, **extra, progress=callback)

        return call

    return decorate


def config_class(name: str) -> type[Config]:
    """The config class of a job by its function's name."""
    return resolve_name(f"mtrec_ray.{CONFIGS[name]}")


@job("sources.init:InitConfig", "sources.init:init_lake")
def init_lake(config: InitConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Guess the settings of your own tables. From a folder of Parquet or CSV files.

    >>> mt.init_lake(raw="my-tables", out="lake.yaml")
    """


@job("lake.config:LakeBuildConfig", "lake.build:build_from_source")
def build_lake(config: LakeBuildConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Build a lake from raw files. It exists complete or not at all.

    >>> mt.build_lake(dataset="movielens", raw="ml-1m", out="lake", download=True)
    """


@job("lake.config:LakeConfig", "lake.inspect:check_lake")
def check_lake(config: LakeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Verify a lake. UserError if hashes, counts, schema, buckets or references are damaged.

    >>> mt.check_lake(lake="lake")
    """


@job("lake.config:LakeConfig", "lake.inspect:show_lake")
def show_lake(config: LakeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show a lake, territory by territory.

    >>> mt.show_lake(lake="lake").metrics
    """


@job("lake.config:EmbedConfig", "lake.embed:embed_lake")
def embed_lake(config: EmbedConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Compute vectors of users and titles. From the events of the lake's training window.

    >>> mt.embed_lake(lake="lake", text={"model": None}, interactions={"width": 64})
    """


@job("streams.config:PairsConfig", "jobs.pairs:summarise_pairs")
def show_pairs(config: PairsConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Count the pairs of a training sample.

    Users, positives and negatives by territory, as in table 1 of Gampa et al. 2023 (paper A).

    >>> mt.show_pairs(lake="lake", sample={"tau": 0.5}).metrics
    """


@job("trainers.propensity_config:PropensityConfig", "training.fit:train_propensity")
def train_propensity(
    config: PropensityConfig | None = None, *, progress: Progress = None, **settings: Any
) -> JobResult:
    """Train a propensity model. Two towers with group blocks, Gampa et al. 2023 (paper A).

    >>> mt.train_propensity(lake="lake", name="mtl", kind="mtl", optim={"epochs": 2})
    """


@job("trainers.backbone_config:BackboneConfig", "training.fit:train_backbone")
def train_backbone(config: BackboneConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Train a sequential backbone. SASRec or BERT4Rec, as in Wu et al. 2022 (paper B).

    >>> mt.train_backbone(lake="lake", name="bb", model={"kind": "sasrec"})
    """


@job("trainers.eliminators_config:EliminatorsConfig", "training.eliminators:train_eliminators")
def train_eliminators(
    config: EliminatorsConfig | None = None, *, progress: Progress = None, **settings: Any
) -> JobResult:
    """Train eliminators of user attributes.

    Each hides a combination of attributes in a backbone's vectors (Wu et al. 2022, paper B). Packs train in parallel.

    >>> mt.train_eliminators(backbone="runs/bb", name="el", combinations="gender,gender+age")
    """


@job("jobs.runs:ListRunsConfig", "jobs.runs:list_runs")
def list_runs(config: ListRunsConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """List runs: status, input, metrics.

    >>> mt.list_runs(runs="runs").metrics
    """


@job("jobs.runs:ShowRunConfig", "jobs.runs:show_run")
def show_run(config: ShowRunConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show a run: settings, figures, loss.

    >>> mt.show_run(run="mtl")
    """


@job("jobs.config:EvaluateConfig", "jobs.evaluate:evaluate_propensity")
def evaluate(config: EvaluateConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Evaluate propensity runs: PR-AUC, gains.

    Gains are over the first run, as in tables 2 and 3 of Gampa et al. 2023 (paper A).

    >>> mt.evaluate(runs=["runs/base", "runs/mtl"], out="report").metrics
    """


@job("jobs.config:AuditConfig", "jobs.audit:audit")
def audit(config: AuditConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Measure what still leaks to attackers.

    On users of the audit split, whom no eliminator saw; and what hiding costs in accuracy.

    >>> mt.audit(run="runs/el", out="audit").metrics
    """


@job("reports.config:ReportConfig", "reports.report:make_report")
def make_report(config: ReportConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Draw one page of figures. From what runs, evaluations, audits and searches saved.

    >>> mt.make_report(results=["runs/base", "runs/mtl", "report", "audit"], out="report.html")
    """


@job("jobs.config:BundleConfig", "jobs.bundle:make_bundle")
def make_bundle(config: BundleConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Bundle runs and their audit for serving. As safetensors, Parquet and JSON.

    >>> mt.make_bundle(run="runs/el", audit="audit", out="bundle")
    """


@job("tuning.config:PropensitySearchConfig", "tuning.propensity_search:search_propensity")
def search_propensity(
    config: PropensitySearchConfig | None = None, *, resume: bool = False, progress: Progress = None, **settings: Any
) -> JobResult:
    """Search settings and territory groups.

    Writes best-config.yaml, which `mtrec train propensity --config` reads. `resume` continues a stopped search; it
    reads Ray Tune's pickles, so only resume searches of your own.

    >>> mt.search_propensity(lake="lake", name="s", space={"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    """


@job("tuning.config:EliminatorsSearchConfig", "tuning.eliminators_search:search_eliminators")
def search_eliminators(
    config: EliminatorsSearchConfig | None = None, *, resume: bool = False, progress: Progress = None, **settings: Any
) -> JobResult:
    """Search settings of eliminators.

    Chooses the least leakage at a minimum accuracy; otherwise as the search of propensity models.

    >>> mt.search_eliminators(backbone="runs/bb", name="l", space={"adversary.weight": [0.03, 0.1, 0.3]})
    """


@job("tuning.config:PartitionConfig", "tuning.show:show_partition")
def show_partition(config: PartitionConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Show groups of territories. Those of a partition, their sizes, the evidence for them.

    >>> mt.show_partition(lake="lake", partition="taste:4")
    """


@job("serving.config:StoreLoadConfig", "serving.load:load_store")
def load_store(config: StoreLoadConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Write the users of a lake to the store.

    Overwrites each one's stored history, also events appended since the lake was built; other users stay.

    >>> mt.load_store(lake="lake", store="redis://localhost:6379/0")
    """


@job("serving.config:ServeConfig", "serving.endpoint:serve_endpoint")
def serve(config: ServeConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Serve a bundle on this machine. Ctrl-C ends it; on a cluster, use serving/serve.yaml.

    >>> mt.serve(bundle="bundle", store="store")
    """


@job("serving.config:PromoteConfig", "serving.promote:promote")
def promote(config: PromoteConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Make a bundle live if it passes its gates. Endpoints load it by themselves.

    >>> mt.promote(bundle="bundle", pointer="live.json", gates={"max_leak": 0.03})
    """


@job("serving.config:RollbackConfig", "serving.promote:rollback")
def rollback(config: RollbackConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Make the previous bundle live again.

    >>> mt.rollback(pointer="live.json")
    """


@job("jobs.quickstart_config:QuickstartConfig", "jobs.quickstart:quickstart")
def quickstart(config: QuickstartConfig | None = None, *, progress: Progress = None, **settings: Any) -> JobResult:
    """Run all steps, from raw files to bundle.

    Trains and evaluates the models of Gampa et al. 2023 (paper A) and Wu et al. 2022 (paper B).

    >>> mt.quickstart(dataset="synthetic", out="quickstart", seeds=1)
    """
