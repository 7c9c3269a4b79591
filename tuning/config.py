"""Settings of `mtrec search ...` and `mtrec partition show`."""

from typing import Any

from pydantic import Field

from mtrec_ray.config import Config, Seed
from mtrec_ray.lake.window import WindowConfig
from mtrec_ray.streams.config import SampleConfig


class SearchConfig(Config):
    """What every search has: its space, its trials, and what they may use."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the search (letters, digits and . _ + -)."""
    searches: str = "searches"
    """Folder or URI that holds the searches."""
    seed: Seed = 0
    """Of the sampler, and of every trial's weights and batches."""
    base: dict[str, Any] = {}
    """Settings that all trials share, as `mtrec train` takes them."""
    space: dict[str, Any]
    """Dotted key -> a range (low, high, log, step), a list of choices, or for model.groups partitions."""
    warm_start: list[dict[str, Any]] = []
    """Configurations (dotted keys of the space) that are tried first; what they leave out is drawn."""
    trials: int = Field(default=20, ge=1)
    """Configurations tried, warm starts included."""
    buckets: int | None = Field(default=None, ge=1)
    """Buckets of the lake that a trial reads and keeps in memory, each a random sample of the users; null reads all."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel workers of a trial, which hold their CPUs together or not at all."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Logical CPUs a worker holds."""
    trials_at_once: int | None = Field(default=None, ge=1)
    """Trials side by side; null: as many as the cluster's CPUs hold, one left free."""
    confirm: int = Field(default=3, ge=0)
    """Times the chosen configuration is trained anew with a seed of its own: the best of many is partly luck."""
    retries: int = Field(default=2, ge=0)
    """Times a trial that died is started again from its last look before it is marked as failed."""


class PropensitySearchConfig(SearchConfig):
    """A search over a propensity model's settings, among them which territories share a block."""

    lake: str
    """Folder or URI of the lake."""
    metric: str = "pr_auc/weighted"
    """What is maximised: pr_auc or ndcg@10 of /all users pooled, /mean of territories, /weighted by positives."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of users that trials are validated on; test users stay untouched."""
    validation_days: int | None = Field(default=None, ge=0)
    """Last days of the window that are held back to validate on; null: 7 where the lake allows, else 0: the days after
    the window, of validation users alone."""
    validation_users: int = Field(default=10_000, ge=100)
    """Users that a trial is validated on at most, drawn by hash."""
    looks: int = Field(default=4, ge=1)
    """Times a trial is validated, evenly over its steps, the last at its end."""
    early_stop: bool = True
    """ASHA (Li et al. 2020): at look 1 and at each `reduction_factor` times the one before, the weaker trials end."""
    reduction_factor: int = Field(default=2, ge=2)
    """At each such look one trial in so many goes on."""
    num_bootstrap: int = Field(default=50, ge=10)
    """Replicates behind the interval of each trial."""


class EliminatorsSearchConfig(SearchConfig):
    """A search over the game of eliminators and adversaries: leakage against accuracy."""

    backbone: str
    """Folder or URI of the backbone's run."""
    combinations: str = "all"
    """Combinations, as in `mtrec train eliminators`."""
    min_ndcg_ratio: float = Field(default=0.98, gt=0, le=1)
    """The choice: of all trials that keep this share of the backbone's NDCG@10, the one that leaks least."""
    shared: bool = True
    """One configuration for all combinations; false: a search of its own for each, one after another."""
    num_permutations: int = Field(default=5, ge=2)
    """Trainings on permuted labels behind each trial's chance level."""


class PartitionConfig(Config):
    """A partition of a lake's territories."""

    lake: str
    """Folder or URI of the lake."""
    partition: str = "affinity"
    """one, each, regions, volume:G, taste[:G], affinity[:G], random:G[:DRAW], or a YAML file of groups."""
    out: str | None = None
    """File or URI for the groups, as `mtrec train propensity --groups` reads them."""
    buckets: int | None = Field(default=None, ge=1)
    """Buckets that are read, each a random sample of the users; null reads all."""
    seed: Seed = 0
    """Of random partitions, clusterings, and the short run behind gradient affinity."""
    sample: SampleConfig = SampleConfig()
    """Whose discoveries count; test users' never do. For groups that a search shall compare with others, leave out whom
    it validates on (its sample.validation_fraction), and when (window.end before its held-back days)."""
    window: WindowConfig = WindowConfig()
