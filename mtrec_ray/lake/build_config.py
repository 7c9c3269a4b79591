"""Settings of `mtrec lake build`, whatever the source."""

from typing import Literal

from pydantic import Field

from mtrec_ray.config import Config


class BuildOptions(Config):
    """How a lake is built, whatever its source."""

    num_buckets: int | None = Field(default=None, ge=1)
    """Buckets of users and events; a reader holds one at a time. null = as many as keep a bucket within 40,000 users,
    at least 16."""
    on_bad_rows: Literal["error", "quarantine"] = "error"
    """error: stop with the totals and the first offending rows; quarantine: put bad rows trial_overrides, counted in
    lake.json."""
    overwrite: bool = False
    """Replace a lake that is there already, in one step."""
    readers: int | None = Field(default=None, ge=1)
    """Tasks at a time; null = one for each CPU of the cluster."""
