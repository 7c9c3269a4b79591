"""Settings of `mtrec lake build`, `check` and `show`, without those of sources."""

from typing import Literal

from mtrec_ray.config import Config, advanced


class BuildOptions(Config):
    """How a lake is built, whatever its source."""

    num_buckets: int | None = advanced(None, ge=1)
    """Buckets of users and events; a reader holds one at a time. null = one per 40,000 users, at least 16."""
    on_bad_rows: Literal["error", "quarantine"] = "error"
    """error: stop with the totals and the first rejected rows; quarantine: write them to quarantine/ and count them."""
    overwrite: bool = False
    """Replace an existing lake, atomically."""


class LakeConfig(Config):
    """A lake."""

    lake: str
    """Folder or URI of the lake."""
