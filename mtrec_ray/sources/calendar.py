"""Where and when: a source's territories, its training window and the evaluation days behind it."""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from mtrec_ray.errors import UserError


class Territory(BaseModel, frozen=True, extra="forbid"):
    name: str
    region: str
    """Geographic region, the unit of `groups: regions`."""


class Calendar(BaseModel, frozen=True, extra="forbid"):
    """The training window [start, end) and the evaluation days that follow it, as the source proposes them."""

    window_start: datetime
    window_end: datetime
    """First moment after the window, UTC."""
    day_s: int = 86_400
    """Length of one evaluation day in seconds."""
    num_evaluation_days: int = 3
    ordered: bool = True
    """False: neither order nor time exists inside the window (all its events carry one timestamp)."""

    def day_bounds(self, day: int) -> tuple[datetime, datetime]:
        """[first, after) moments of a day: 0 is the whole window, 1.. are the evaluation days."""
        if day == 0:
            return self.window_start, self.window_end
        length = timedelta(seconds=self.day_s)
        return self.window_end + (day - 1) * length, self.window_end + day * length


def proposed_calendar(
    first: datetime,
    last: datetime,
    day_s: int,
    num_evaluation_days: int,
    fix: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Calendar:
    """The calendar of data from the moment `first` to `last`: whole days, the last of them for evaluation.

    Args:
        first: the first event.
        last: the last one.
        day_s: length of an evaluation day in seconds.
        num_evaluation_days: evaluation days at the end of the data.
        fix: what to do where no window is left, for the error.
        start: first moment of the window; None = midnight (UTC) before `first`.
        end: first moment after it; None = the evaluation days end at the midnight after `last`.

    Raises:
        UserError: no window is left.
    """
    after = _midnight(last) + timedelta(days=1)
    start = utc(start or _midnight(first))
    end = utc(end or after - timedelta(seconds=day_s * num_evaluation_days))
    if end <= start:
        raise UserError(
            f"{num_evaluation_days} evaluation days of {day_s / 86_400:g} days leave no window: it would start at "
            f"{start} and end at {end}; {fix}"
        )
    return Calendar(window_start=start, window_end=end, day_s=day_s, num_evaluation_days=num_evaluation_days)


def _midnight(moment: datetime) -> datetime:
    return utc(moment).replace(hour=0, minute=0, second=0, microsecond=0)


def utc(moment: datetime) -> datetime:
    """The moment in UTC; a naive one is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
