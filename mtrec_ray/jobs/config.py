"""Settings of `mtrec evaluate`, `mtrec audit` and `mtrec bundle`."""

from pydantic import Field

from mtrec_ray.config import Config, Seed, advanced


class EvaluateConfig(Config):
    """One evaluation of one or more runs on the same users."""

    runs: list[str]
    """Folders or URIs of finished runs, which may differ in the seed alone."""
    baselines: list[str] = []
    """Variants or references that gains are over; empty: the first run and every other of kind `baseline`."""
    out: str | None = None
    """Folder or URI for CSV and JSON, which `mtrec report` draws; null = print only."""
    references: bool = True
    """Also evaluate what needs no model: popularity in the territory (of the window and its last 365, 90, 30 and 7
    days), plain interaction vectors where the lake has them, and item-kNN, EASE and iALS with tuned settings."""
    validation: bool = False
    """Score the validation users instead of the test users: for choices that must not use the test."""
    num_negatives: int | None = Field(default=None, ge=1)
    """Negatives per user, drawn by hash (99 in most papers); null: all that the user could discover."""
    num_titles: int = Field(default=20, ge=0, le=512)
    """Titles of one territory with metrics of their own: local ones, and comparable global ones (paper A, table 3)."""
    num_bootstrap: int = advanced(default=200, ge=10)
    """Replicates behind each 95% interval; memory grows with them."""


class AuditConfig(Config):
    """What is attacked, and how precisely leakage is measured."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    compare: list[str] = []
    """Further runs of the same backbone, such as filters, fine-tuned models or ablations, audited on the same users."""
    out: str | None = None
    """Folder or URI for CSV and JSON; null = print only."""
    card: str | None = None
    """File or URI of a card for auditors, one dated HTML page; null = none."""
    lists: bool = True
    """Also attack the top-10 lists, with watched titles kept in and left out, not only the vectors."""
    histories: bool = True
    """Also attack with user vectors of 16 histories of each labelled person, which finds values that a model writes."""
    max_users: int = Field(default=50_000, ge=50)
    """Maximum number of users, drawn by hash, so that memory does not grow with the lake."""
    num_permutations: int = Field(default=20, ge=2)
    """Trainings on permuted labels behind each null; an audit's cost grows with them."""
    num_folds: int = advanced(default=5, ge=3)
    """Folds of the audit split, each attacked by attackers trained on the others; the cost grows with them."""
    seed: Seed = advanced(default=0)
    """Of folds, permutations and bootstrap."""


class BundleConfig(Config):
    """One bundle."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    out: str
    """Folder or URI of the bundle; must not hold one."""
    audit: str | None = None
    """Folder or URI of the run's audit (`mtrec audit --out`); null = none, and gates refuse to promote the bundle."""
    propensity: str | None = None
    """Folder or URI of a finished propensity run on the same lake; null = none."""
    evaluation: str | None = None
    """Folder or URI of an evaluation of that run (`mtrec evaluate propensity --out`). Gates compare its PR-AUC, the
    mean over runs that differ in the seed alone."""
