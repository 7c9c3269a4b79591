"""Every job as a Python function; the commands of `mtrec` call the same functions.

    import mtrec_ray as mt
    mt.build_lake(dataset="synthetic", out="lake", source={"users": 2000})
    run = mt.train_propensity(lake="lake", name="mtl", optim={"epochs": 2}, progress=True)
    run.metrics

A job takes a config object, or keyword settings: what a file for `--config` holds, checked alike (UserError). It uses
this process's Ray session, or starts a local one that stays for the next call. `progress=True` draws bars on stderr.
"""

from __future__ import annotations

from contextlib import nullcontext
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from mtrec_ray.config import Config, validate_config

if TYPE_CHECKING:
    from mtrec_ray.console import JobResult, ProgressCallback

CONFIGS: dict[str, str] = {}
"""Job -> its config class, as `module:Class` below mtrec_ray."""


class Job(Protocol):
    """A job, called with a config object or with keyword settings."""

    __name__: str

    def __call__(
        self, config: Any = None, *, progress: bool | ProgressCallback | None = None, **settings: Any
    ) -> JobResult: ...


def job(name: str, config: str, run: str, meaning: str, example: str, keywords: tuple[str, ...] = ()) -> Job:
    """The job `run(config, progress=...)`, imported with its config class at the first call.

    `keywords` are arguments of `run` that are no settings.
    """
    CONFIGS[name] = config

    def call(config: Any = None, *, progress: bool | ProgressCallback | None = None, **settings: Any) -> JobResult:
        from mtrec_ray.console import progress_bars
        from mtrec_ray.lake.cluster import ray_session

        extra = {key: settings.pop(key) for key in keywords if key in settings}
        if config is None:
            config = validate_config(config_class(name), settings)
        elif settings or not isinstance(config, config_class(name)):
            raise TypeError(f"{name} takes one {config_class(name).__name__}, or keyword settings")
        num_cpus = getattr(getattr(config, "runner", config), "num_cpus", None)
        bars = progress_bars() if progress is True else nullcontext(progress or None)
        with ray_session(num_cpus, keep=True), bars as callback:
            return resolve_name(f"mtrec_ray.{run}")(config, **extra, progress=callback)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{meaning}\n\n>>> {example}"
    return call


def config_class(name: str) -> type[Config]:
    """The config class of a job by its function's name."""
    return resolve_name(f"mtrec_ray.{CONFIGS[name]}")


build_lake = job(
    "build_lake",
    "jobs.lakes:LakeBuildConfig",
    "jobs.lakes:build_from_source",
    "Build a lake from raw files. It exists complete or not at all.",
    'mt.build_lake(dataset="movielens", raw="ml-1m", out="lake", download=True)',
)
check_lake = job(
    "check_lake",
    "lake.build_config:LakeConfig",
    "lake.verify:check_lake",
    "Verify the files of a lake. Hashes, counts, schema, buckets and references; UserError if damaged.",
    'mt.check_lake(lake="lake")',
)
show_lake = job(
    "show_lake",
    "lake.build_config:LakeConfig",
    "lake.summary:show_lake",
    "Show a lake, territory by territory.",
    'mt.show_lake(lake="lake").metrics',
)
embed_lake = job(
    "embed_lake",
    "lake.embed_config:EmbedConfig",
    "lake.embed:embed_lake",
    "Compute vectors of users and titles. From the events of the lake's training window.",
    'mt.embed_lake(lake="lake", text={"model": None}, interactions={"width": 64})',
)
show_pairs = job(
    "show_pairs",
    "streams.config:PairsConfig",
    "jobs.pairs:summarise_pairs",
    "Count the pairs of a training sample. Users, positives and negatives by territory, as in table 1 of Gampa et al."
    " 2023 (paper A).",
    'mt.show_pairs(lake="lake", sample={"tau": 0.5}).metrics',
)
train_propensity = job(
    "train_propensity",
    "trainers.propensity_config:PropensityConfig",
    "training.propensity:train_propensity",
    "Train a propensity model. Two towers, with a block for each territory group, of Gampa et al. 2023 (paper A).",
    'mt.train_propensity(lake="lake", name="mtl", kind="mtl", optim={"epochs": 2})',
)
train_backbone = job(
    "train_backbone",
    "trainers.backbone_config:BackboneConfig",
    "training.backbone:train_backbone",
    "Train a sequential backbone. SASRec or BERT4Rec, which eliminators adapt, as in Wu et al. 2022 (paper B).",
    'mt.train_backbone(lake="lake", name="bb", model={"kind": "sasrec"})',
)
train_eliminators = job(
    "train_eliminators",
    "trainers.eliminators_config:EliminatorsConfig",
    "training.eliminators:train_eliminators",
    "Train eliminators of user attributes. Each hides a combination of attributes in a backbone's vectors (Wu et al. "
    "2022, paper B). Packs of them are trained as parallel jobs.",
    'mt.train_eliminators(backbone="runs/bb", name="el", combinations="gender,gender+age")',
)
list_runs = job(
    "list_runs",
    "jobs.runs:ListRunsConfig",
    "jobs.runs:list_runs",
    "List runs: status, input, metrics.",
    'mt.list_runs(runs="runs").metrics',
)
show_run = job(
    "show_run",
    "jobs.runs:ShowRunConfig",
    "jobs.runs:show_run",
    "Show a run: settings, figures, loss.",
    'mt.show_run(run="mtl")',
)
evaluate = job(
    "evaluate",
    "jobs.config:EvaluateConfig",
    "jobs.evaluate:evaluate_propensity",
    "Evaluate propensity runs: PR-AUC, gains. Gains are over the first run, as in tables 2 and 3 of Gampa et al. 2023"
    " (paper A).",
    'mt.evaluate(runs=["runs/base", "runs/mtl"], out="report").metrics',
)
audit = job(
    "audit",
    "jobs.config:AuditConfig",
    "jobs.audit:audit",
    "Measure what still leaks to attackers. On users of the audit split, whom no eliminator saw; and what hiding "
    "costs in accuracy.",
    'mt.audit(run="runs/el", out="audit").metrics',
)
make_bundle = job(
    "make_bundle",
    "jobs.config:BundleConfig",
    "jobs.bundle:make_bundle",
    "Bundle runs and their audit for serving. As safetensors, Parquet and JSON.",
    'mt.make_bundle(run="runs/el", audit="audit", out="bundle")',
)
search_propensity = job(
    "search_propensity",
    "tuning.config:PropensitySearchConfig",
    "tuning.propensity_search:search_propensity",
    "Search settings and territory groups. Writes best-config.yaml, which `mtrec train propensity --config` reads. "
    "`resume` continues a stopped search; it reads Ray Tune's pickles, so only resume searches of your own.",
    'mt.search_propensity(lake="lake", name="s", space={"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}})',
    ("resume",),
)
search_eliminators = job(
    "search_eliminators",
    "tuning.config:EliminatorsSearchConfig",
    "tuning.eliminators_search:search_eliminators",
    "Search settings of eliminators. Chooses the least leakage at a minimum accuracy; otherwise as the search of "
    "propensity models.",
    'mt.search_eliminators(backbone="runs/bb", name="l", space={"adversary.weight": [0.03, 0.1, 0.3]})',
    ("resume",),
)
show_partition = job(
    "show_partition",
    "tuning.config:PartitionConfig",
    "tuning.show:show_partition",
    "Show groups of territories. Groups of a partition with their sizes, and the evidence behind them.",
    'mt.show_partition(lake="lake", partition="taste:4")',
)
load_store = job(
    "load_store",
    "serving.config:StoreLoadConfig",
    "serving.load:load_store",
    "Write the users of a lake to the store. Overwrites each one's stored history, also events appended since the lake "
    "was built; other users stay.",
    'mt.load_store(lake="lake", store="redis://localhost:6379/0")',
)
serve = job(
    "serve",
    "serving.config:ServeConfig",
    "commands.serve:serve",
    "Serve a bundle on this machine. Ends when interrupted; on a cluster serving/serve.yaml does the same.",
    'mt.serve(bundle="bundle", store="store")',
)
promote = job(
    "promote",
    "serving.config:PromoteConfig",
    "serving.promote:promote",
    "Make a bundle live if it passes its gates. Endpoints load it by themselves.",
    'mt.promote(bundle="bundle", pointer="live.json", gates={"max_leak": 0.03})',
)
rollback = job(
    "rollback",
    "serving.config:RollbackConfig",
    "serving.promote:rollback",
    "Make the previous bundle live again.",
    'mt.rollback(pointer="live.json")',
)
quickstart = job(
    "quickstart",
    "jobs.quickstart_config:QuickstartConfig",
    "jobs.quickstart:quickstart",
    "Run all steps, from raw files to bundle. Trains and evaluates the models of Gampa et al. 2023 (paper A) and Wu "
    "et al. 2022 (paper B).",
    'mt.quickstart(dataset="synthetic", out="quickstart", seeds=1)',
)
