"""Where and when: a source's territories, its training window and the evaluation days behind it."""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel


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


def utc(moment: datetime) -> datetime:
    """The moment in UTC; a naive one is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
