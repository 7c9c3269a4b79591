"""Settings of `mtrec store load`."""

from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.serving.store import MAX_STORED_EVENTS


class StoreLoadConfig(Config):
    """One load of a lake's users into an online store."""

    lake: str
    """Folder or URI of the lake."""
    store: str
    """redis://host:port/db, rediss://..., or a local folder, which is created."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after a user's load or last event until the store forgets the user; null: never."""
    max_events: int = Field(default=MAX_STORED_EVENTS, ge=1, le=MAX_STORED_EVENTS)
    """Most recent events stored per user."""
