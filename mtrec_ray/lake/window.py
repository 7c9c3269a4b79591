"""The training window and the days after it, as the source proposes and the user changes them."""

from datetime import datetime

from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.sources.calendar import to_utc


class WindowConfig(Config):
    """The training window and the days after it; null takes what the lake's source proposes."""

    start: datetime | None = None
    """First moment of the window, UTC."""
    end: datetime | None = None
    """First moment after the window, UTC."""
    day_s: int | None = Field(default=None, gt=0)
    """Length of an evaluation day in seconds."""
    num_evaluation_days: int | None = Field(default=None, ge=0)
    """Evaluation days after the window (three in paper A)."""


def resolve_calendar(lake: Lake, window: WindowConfig) -> Calendar:
    """The source's calendar with the user's changes."""
    given = window.model_dump(exclude_none=True)
    for name, field in (("start", "window_start"), ("end", "window_end")):
        if name in given:
            given[field] = to_utc(given.pop(name))
    calendar = lake.manifest.calendar.model_copy(update=given)
    if calendar.window_start >= calendar.window_end:
        raise UserError(f"window.start {calendar.window_start} is not before window.end {calendar.window_end}")
    return calendar
