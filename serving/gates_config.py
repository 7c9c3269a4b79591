"""Settings of `mtrec promote`."""

from pydantic import Field

from mtrec_ray.config import Config


class GatesConfig(Config):
    """What a bundle must show before it goes live; a figure counts as worse only if its whole interval is."""

    ndcg_share: float = Field(default=0.97, gt=0)
    """NDCG@10 of each combination: the interval's upper end must reach this share of the live bundle's figure."""
    min_ndcg: float = Field(default=0.0, ge=0)
    """NDCG@10 of each combination: the interval's lower end must reach this."""
    pr_auc_share: float = Field(default=0.97, gt=0)
    """Mean PR-AUC of the propensity model: as `ndcg_share`, where both were measured alike (negatives and users)."""
    max_leak: float = Field(default=0.02, ge=0)
    """How far the best attacker's balanced accuracy may exceed its null's upper end, for each ignored attribute."""
    max_auc_leak: float = Field(default=0.05, ge=0)
    """As `max_leak`, for the attacker's AUC; higher, as choosing the best attacker alone moves an AUC by 0.02."""
    min_permutations: int = Field(default=8, ge=2)
    """Trainings on permuted labels behind each null; with fewer, the null is too wide to say much."""
    audit: bool = True
    """False also promotes a bundle that has no audit."""
    against_live: bool = True
    """False skips the comparison: for a damaged pointer, a lost live bundle, or combinations that are to be dropped."""


class PromoteConfig(Config):
    """A bundle, and the pointer that shall name it."""

    bundle: str
    """Folder or URI of the bundle."""
    pointer: str
    """Pointer that endpoints follow: a file or URI that ends in .json."""
    gates: GatesConfig = GatesConfig()
