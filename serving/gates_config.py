"""Settings of `mtrec promote` and `mtrec rollback`."""

from pydantic import Field

from mtrec_ray.config import Config


class GatesConfig(Config):
    """Conditions for a bundle to go live; a metric counts as worse only if its whole interval is worse."""

    ndcg_ratio: float = Field(default=0.97, gt=0)
    """Minimum NDCG@10 of each combination relative to the live bundle, reached by the interval's upper end."""
    min_ndcg: float = Field(default=0.0, ge=0)
    """Minimum NDCG@10 of each combination, reached by the interval's lower end."""
    pr_auc_ratio: float = Field(default=0.97, gt=0)
    """Like `ndcg_ratio`, for the mean PR-AUC of the propensity model; both must be measured on the same protocol."""
    max_leak: float = Field(default=0.02, ge=0)
    """Largest excess of the best attacker's balanced accuracy over its null interval, per ignored attribute."""
    max_auc_leak: float = Field(default=0.05, ge=0)
    """Like `max_leak`, for AUC; larger, because choosing the best attacker alone moves an AUC by 0.02."""
    min_permutations: int = Field(default=8, ge=2)
    """Minimum permutations behind each null interval; with fewer, the interval is too wide."""
    audit: bool = True
    """Require an audit."""
    against_live: bool = True
    """Compare with the live bundle; false for a damaged pointer, a lost live bundle or dropped combinations."""


class RollbackConfig(Config):
    """The pointer to move back."""

    pointer: str
    """Pointer that endpoints follow: a file or URI that ends in .json."""


class PromoteConfig(RollbackConfig):
    """A bundle, and the pointer to move to it."""

    bundle: str
    """Folder or URI of the bundle."""
    gates: GatesConfig = GatesConfig()
