"""Settings of `mtrec audit`."""

from pydantic import Field

from mtrec_ray.config import Config


class AuditConfig(Config):
    """What is read from which vectors, and how surely it is told."""

    run: str
    """Folder or URI of a finished run of eliminators."""
    compare: list[str] = []
    """Further runs of the same backbone, such as filters, fine-tuned models or ablations, audited on the same users."""
    out: str | None = None
    """Folder or URI for CSV and JSON; null = print only."""
    lists: bool = True
    """Also attack the top-10 lists, not only the vectors."""
    max_users: int = Field(default=50_000, ge=50)
    """Users audited and measured at most, drawn by hash, so that memory does not grow with the lake."""
    num_folds: int = Field(default=5, ge=3)
    """Folds of the attackers' users: each is attacked by attackers that learned on the others."""
    cross_fit: bool = True
    """Every fold is attacked in turn; false = one fold alone, for large lakes."""
    num_repeats: int | None = Field(default=None, ge=1)
    """Times every user's vector is attacked, in other folds by other attackers; figures and nulls are means over them.
    null: once for 1,500 users or more, up to four times for fewer. Lists are attacked once."""
    num_permutations: int = Field(default=20, ge=2)
    """Trainings on permuted labels behind each null; the cost of an audit grows with them."""
    num_bootstrap: int = Field(default=200, ge=10)
    """Replicates behind each 95% interval."""
    max_train_users: int = Field(default=20_000, ge=50)
    """Users that a fold's attackers learn on at most."""
    seed: int = Field(default=0, ge=0)
    """Of folds, permutations and bootstrap."""
