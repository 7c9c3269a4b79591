"""Territories, the training window and the evaluation days after it."""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from mtrec_ray.errors import UserError

DAY_S = 86_400
ACTIVE_DAYS = 90  # An active user has an event in this many last days of the training window


class Territory(BaseModel, frozen=True, extra="forbid"):
    name: str
    region: str  # Geographic region, the unit of `groups: regions`


class Calendar(BaseModel, frozen=True, extra="forbid"):
    """The training window [start, end) and the evaluation days that follow it, UTC."""

    window_start: datetime
    window_end: datetime
    day_s: int = DAY_S  # Length of an evaluation day in seconds
    num_evaluation_days: int = 3
    ordered: bool = True  # False: all events of the window carry one timestamp, so their order is unknown

    def day_bounds(self, day: int) -> tuple[datetime, datetime]:
        """[start, end) of an evaluation day, counted from 1; 0 is the training window."""
        if day == 0:
            return self.window_start, self.window_end
        length = timedelta(seconds=self.day_s)
        return self.window_end + (day - 1) * length, self.window_end + day * length


def propose_calendar(
    first: datetime,
    last: datetime,
    day_s: int,
    num_evaluation_days: int,
    fix: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Calendar:
    """Window [start, end) and evaluation days of events from `first` to `last`.

    By default the window starts at midnight before `first`, and the evaluation days end at midnight after `last`.
    UserError if no window is left; `fix` is what to change.
    """
    first, last = (to_utc(time).replace(hour=0, minute=0, second=0, microsecond=0) for time in (first, last))
    start = to_utc(start or first)
    end = to_utc(end or last + timedelta(days=1, seconds=-day_s * num_evaluation_days))
    if end <= start:
        raise UserError(
            f"{num_evaluation_days} evaluation days of {day_s / DAY_S:g} days leave no training window: it would start "
            f"at {start} and end at {end}; {fix}"
        )
    return Calendar(window_start=start, window_end=end, day_s=day_s, num_evaluation_days=num_evaluation_days)


def to_utc(time: datetime) -> datetime:
    """A time in UTC; one without a time zone is taken as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
