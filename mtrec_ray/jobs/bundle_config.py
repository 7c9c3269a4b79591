"""Settings of `mtrec bundle`."""

from mtrec_ray.config import Config


class BundleConfig(Config):
    """One bundle."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    out: str
    """Folder or URI of the bundle; must not hold one."""
    audit: str | None = None
    """Folder or URI of the run's audit (`mtrec audit --out`); null = none, and gates refuse to promote the bundle."""
    propensity: str | None = None
    """Folder or URI of a finished multi-task run on the same lake; null = none."""
    evaluation: str | None = None
    """Folder or URI of an evaluation of that run (`mtrec evaluate propensity --out`). Gates compare its PR-AUC, the
    mean over runs that differ in the seed alone."""
