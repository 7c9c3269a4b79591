"""Settings of `mtrec bundle`."""

from mtrec_ray.config import Config


class BundleConfig(Config):
    """One bundle."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    out: str
    """Folder or URI of the bundle; must not hold one."""
    audit: str | None = None
    """Folder or URI of the run's audit (`mtrec audit --out`); null = without, and gates will not let it be promoted."""
    propensity: str | None = None
    """Folder or URI of a finished multi-task run on the same lake; null = without."""
    evaluation: str | None = None
    """Folder or URI of an evaluation of that run (`mtrec evaluate propensity --out`), whose PR-AUC gates look at: that
    of its variant, the mean of the runs that differ from it in the seed alone."""
