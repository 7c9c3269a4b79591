"""The training window and evaluation days: the source's proposal with the user's changes."""

from datetime import datetime

from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.sources.calendar import to_utc


class WindowConfig(Config):
    """The training window and the evaluation days after it; null = the source's proposal."""

    start: datetime | None = None
    """Start of the window, UTC."""
    end: datetime | None = None
    """Exclusive end of the window, UTC."""
    day_s: int | None = Field(default=None, gt=0)
    """Length of an evaluation day in seconds."""
    num_evaluation_days: int | None = Field(default=None, ge=0)
    """Evaluation days after the window (three in Gampa et al. 2023)."""


def resolve_calendar(lake: Lake, window: WindowConfig) -> Calendar:
    """The source's calendar with the user's changes; UserError where no window is left."""
    changes = window.model_dump(exclude_none=True)
    for name in {"start", "end"} & changes.keys():
        changes[f"window_{name}"] = to_utc(changes.pop(name))
    calendar = lake.manifest.calendar.model_copy(update=changes)
    if calendar.window_start >= calendar.window_end:
        raise UserError(f"window.start {calendar.window_start} is not before window.end {calendar.window_end}")
    return calendar
