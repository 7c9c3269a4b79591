"""Settings of `mtrec search ...` and `mtrec partition show`."""

from typing import Any

from pydantic import Field

from mtrec_ray.config import Config, Name, Seed, advanced
from mtrec_ray.files import AbsoluteUri, join
from mtrec_ray.lake.config import WindowConfig
from mtrec_ray.streams.config import SampleConfig


class SearchConfig(Config):
    """What every search has: its space, its trials, and the resources they may use."""

    name: Name
    """Name of the search (letters, digits and . _ + -)."""
    searches: AbsoluteUri = "searches"
    """Folder or URI that holds the searches."""
    seed: Seed = 0
    """Seed of the sampler, and of every trial's weights and batches."""
    base: dict[str, Any] = {}
    """Settings that all trials share, as `mtrec train` takes them; the first trial starts from them."""
    space: dict[str, Any]
    """Dotted key -> range (low, high, log, step), list of choices, or partitions."""
    trials: int = Field(default=20, ge=1)
    """Number of configurations to try."""
    buckets: int | None = Field(default=None, ge=1)
    """Buckets of users that a trial keeps in memory, each a random sample; null reads all."""
    cpus_per_worker: float = advanced(1.0, gt=0)
    """Logical CPUs of a worker."""
    trials_at_once: int | None = Field(default=None, ge=1)
    """Maximum number of trials side by side; null: as many as fit while one CPU stays free."""
    confirm: int = Field(default=3, ge=0)
    """Train the best configuration again with N fresh seeds, for figures without the luck of the choice."""

    @property
    def uri(self) -> str:
        """Folder of the search."""
        return join(self.searches, self.name)


class PropensitySearchConfig(SearchConfig):
    """A search over a propensity model's settings and territory groups."""

    lake: AbsoluteUri
    """Folder or URI of the lake."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel workers of a trial; a trial starts only when all of their CPUs are free."""
    metric: str = "pr_auc/weighted"
    """Metric to maximise: pr_auc or ndcg@10, of /all users, /mean or /weighted territories."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of users that trials are validated on; test users stay untouched."""
    validation_days: int | None = Field(default=None, ge=0)
    """Last days of the window to validate on; 0: days after it; null: 7 if possible, else 0."""
    validations: int = Field(default=4, ge=1)
    """Validations of a trial; after the 1st, 2nd, 4th, ... the weaker half stops (ASHA); 1: none stops."""


class EliminatorsSearchConfig(SearchConfig):
    """A search over eliminators and their adversaries: leakage against accuracy."""

    backbone: AbsoluteUri
    """Folder or URI of the backbone's run."""
    combinations: str = "all"
    """Combinations, as in `mtrec train eliminators`; all share one configuration."""
    min_ndcg_ratio: float = Field(default=0.98, gt=0, le=1)
    """Choose the least leakage at this ratio of the backbone's NDCG@10 or more."""


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
