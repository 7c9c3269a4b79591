"""Settings of `mtrec evaluate propensity`."""

from pydantic import Field

from mtrec_ray.config import Config


class EvaluateConfig(Config):
    """One evaluation of one or more runs on the same users."""

    runs: list[str]
    """Folders or URIs of finished runs; gains are relative to the first."""
    out: str | None = None
    """Folder or URI for CSV, JSON and figures; null = print only."""
    references: bool = True
    """Also evaluate territory popularity and, where the lake has them, the plain interaction vectors."""
    validation: bool = False
    """Score the validation users instead of the test users: for choices that must not see the test."""
    num_negatives: int | None = Field(default=None, ge=1)
    """Score against so many titles a user, drawn by hash (99 in most papers); null: all that it could discover."""
    num_bootstrap: int = Field(default=200, ge=10)
    """Replicates behind each 95% interval."""
    seed: int = 0
    """Of the bootstrap and of drawn negatives."""
    num_titles: int = Field(default=20, ge=0, le=512)
    """Titles, those with the most positives, that get figures of their own (paper A, table 3)."""
    list_length: int = Field(default=10, ge=1)
    """Length of the lists whose popularity bias is measured."""
