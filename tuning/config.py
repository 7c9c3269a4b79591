"""Settings of `mtrec search ...` and `mtrec partition show`."""

from typing import Any

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed, advanced
from mtrec_ray.lake.window import WindowConfig
from mtrec_ray.streams.config import SampleConfig


class SearchConfig(Config):
    """What every search has: its space, its trials, and the resources they may use."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the search (letters, digits and . _ + -)."""
    searches: str = "searches"
    """Folder or URI that holds the searches."""
    seed: Seed = 0
    """Seed of the sampler, and of every trial's weights and batches."""
    base: dict[str, Any] = {}
    """Settings that all trials share, as `mtrec train` takes them."""
    space: dict[str, Any]
    """Dotted key -> range (low, high, log, step), list of choices, or partitions."""
    warm_start: list[dict[str, Any]] = advanced([])
    """Configurations to try first; the sampler draws the keys that they leave out."""
    trials: int = Field(default=20, ge=1)
    """Number of configurations to try, warm starts included."""
    buckets: int | None = Field(default=None, ge=1)
    """Buckets of users that a trial keeps in memory, each a random sample; null reads all."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel workers of a trial; a trial starts only when all of their CPUs are free."""
    cpus_per_worker: float = advanced(1.0, gt=0)
    """Logical CPUs of a worker."""
    trials_at_once: int | None = Field(default=None, ge=1)
    """Maximum number of trials side by side; null: as many as fit while one CPU stays free."""
    confirm: int = Field(default=3, ge=0)
    """Trainings of the choice with fresh seeds: the best of many trials is partly luck."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_name(cls, document: Any) -> Any:
        if isinstance(document, dict) and "looks" in document:
            raise ValueError("setting 'looks' is called 'validations' now: rename it")
        return document


class PropensitySearchConfig(SearchConfig):
    """A search over a propensity model's settings and territory groups."""

    lake: str
    """Folder or URI of the lake."""
    metric: str = "pr_auc/weighted"
    """Metric to maximise: pr_auc or ndcg@10, of /all users, /mean or /weighted territories."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of users that trials are validated on; test users stay untouched."""
    validation_days: int | None = Field(default=None, ge=0)
    """Last days of the window to validate on; 0: days after it; null: 7 if possible, else 0."""
    validation_users: int = advanced(10_000, ge=100)
    """Maximum number of validation users, drawn by hash."""
    validations: int = advanced(4, ge=1)
    """Validations of a trial, evenly over its steps, the last at its end."""
    early_stop: bool = True
    """Stop the weaker half of trials after validations 1, 2, 4, ... (ASHA, Li et al. 2020)."""
    num_bootstrap: int = advanced(50, ge=10)
    """Bootstrap replicates of each trial's intervals."""


class EliminatorsSearchConfig(SearchConfig):
    """A search over eliminators and their adversaries: leakage against accuracy."""

    backbone: str
    """Folder or URI of the backbone's run."""
    combinations: str = "all"
    """Combinations, as in `mtrec train eliminators`."""
    min_ndcg_ratio: float = Field(default=0.98, gt=0, le=1)
    """Choose the least leakage at this ratio of the backbone's NDCG@10 or more."""
    shared: bool = True
    """One configuration for all combinations; false: a search for each, one after another."""
    workers: int = advanced(1, ge=1, le=1)
    """Always 1: a trial trains in one process; raise trials_at_once instead."""
    num_permutations: int = advanced(5, ge=2)
    """Trainings on permuted labels behind each trial's chance level."""


class PartitionConfig(Config):
    """A partition of a lake's territories."""

    lake: str
    """Folder or URI of the lake."""
    partition: str = "affinity"
    """one, each, regions, volume:G, taste[:G], affinity[:G], random:G[:DRAW], or a YAML file."""
    out: str | None = None
    """File or URI to write the groups to, as `mtrec train propensity --groups` reads them."""
    buckets: int | None = Field(default=None, ge=1)
    """Buckets to read, each a random sample of the users; null reads all."""
    seed: Seed = 0
    """Seed of random partitions, of clustering, and of the short run behind gradient affinity."""
    sample: SampleConfig = advanced(SampleConfig())
    """Users whose discoveries count; test users' never do.
    For groups that a search compares, leave out its validation users and held-back days (an earlier window.end)."""
    window: WindowConfig = WindowConfig()
