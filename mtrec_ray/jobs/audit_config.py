"""Settings of `mtrec audit`."""

from pydantic import Field

from mtrec_ray.config import Config, advanced


class AuditConfig(Config):
    """What is attacked, and how precisely leakage is measured."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    compare: list[str] = []
    """Further runs of the same backbone, such as filters, fine-tuned models or ablations, audited on the same users."""
    out: str | None = None
    """Folder or URI for CSV and JSON; null = print only."""
    lists: bool = True
    """Also attack the top-10 lists, not only the vectors."""
    max_users: int = Field(default=50_000, ge=50)
    """Maximum number of users, drawn by hash, so that memory does not grow with the lake."""
    num_folds: int = advanced(default=5, ge=3)
    """Folds of the audit split: each is attacked by attackers trained on the others."""
    cross_fit: bool = advanced(default=True)
    """Attack every fold in turn; false = one fold, for large lakes."""
    num_repeats: int | None = advanced(default=None, ge=1)
    """Attacks per user vector, in other folds by other attackers; metrics are means over them. null: once for 1,500
    users or more, up to four times for fewer. Lists are attacked once."""
    num_permutations: int = Field(default=20, ge=2)
    """Trainings on permuted labels behind each null; an audit's cost grows with them."""
    num_bootstrap: int = advanced(default=200, ge=10)
    """Replicates behind each 95% interval."""
    max_train_users: int = advanced(default=20_000, ge=50)
    """Maximum training users of a fold's attackers."""
    seed: int = advanced(default=0, ge=0)
    """Of folds, permutations and bootstrap."""
