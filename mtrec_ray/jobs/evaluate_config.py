"""Settings of `mtrec evaluate propensity`."""

from pydantic import Field

from mtrec_ray.config import Config, advanced


class EvaluateConfig(Config):
    """One evaluation of one or more runs on the same users."""

    runs: list[str]
    """Folders or URIs of finished runs; gains are relative to the first."""
    out: str | None = None
    """Folder or URI for CSV, JSON and figures; null = print only."""
    references: bool = True
    """Also evaluate popularity in the territory and, where the lake has them, plain interaction vectors."""
    validation: bool = False
    """Score the validation users instead of the test users: for choices that must not use the test."""
    num_negatives: int | None = Field(default=None, ge=1)
    """Negatives per user, drawn by hash (99 in most papers); null: all that the user could discover."""
    num_bootstrap: int = advanced(default=200, ge=10)
    """Replicates behind each 95% interval."""
    seed: int = advanced(default=0)
    """Of the bootstrap and of drawn negatives."""
    num_titles: int = advanced(default=20, ge=0, le=512)
    """Titles with most positives that get metrics of their own (paper A, table 3)."""
    list_length: int = advanced(default=10, ge=1)
    """Length of the lists whose popularity bias is measured."""
