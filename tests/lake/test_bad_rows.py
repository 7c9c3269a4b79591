"""Errors of builds whose rows are rejected: the cause first, in this process without a cluster."""

import pytest

from mtrec_ray.lake import build as lake_build
from mtrec_ray.lake.validate import BadRowsError
from mtrec_ray.streams.ordered import LocalReader
from tests.lake.conftest import build


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(lake_build, "map_tasks", LocalReader().map)


def test_rejected_users_are_the_cause_of_their_events(service, out):
    for user in service.users[:4]:
        user["territory"] = "XX"
    with pytest.raises(BadRowsError) as error:
        build(service.source(), out)
    first, users, events = str(error.value).splitlines()
    assert first == (
        "24 rows cannot enter the lake, mostly for users/unknown_territory (not one of the declared territories), from "
        "which 20 rows of events and candidates follow: correct them, or leave them out with --on-bad-rows quarantine"
    )
    assert users.startswith('  users/unknown_territory: 4 rows, first {"user_id": "user-0", "territory": "XX"')
    assert events == "  events/unknown_user: 20 rows, all of rejected users or titles"


@pytest.mark.parametrize("on_bad_rows", ["error", "quarantine"])
@pytest.mark.parametrize(
    ("column", "line"),
    [
        ("user_id", "no user has this user_id, of any event: user_id is '0' in events and 'user-0' in users"),
        ("title_id", "no title has this title_id, of any event: title_id is '0' in events and 'title-0' in titles"),
    ],
)
def test_ids_of_another_form_than_those_of_the_events_are_compared(service, out, column, line, on_bad_rows):
    """A lake without events is refused with quarantine too."""
    for event in service.events:
        event[column] = event[column].split("-")[1]
    service.users.sort(key=lambda user: user["user_id"] != "user-0")
    with pytest.raises(BadRowsError) as error:
        build(service.source(), out, num_buckets=1, on_bad_rows=on_bad_rows)
    first = str(error.value).splitlines()[0]
    assert first == (
        f"200 rows cannot enter the lake, mostly for events/unknown_{column[:-3]} ({line}): no event would be left: "
        "correct them, or map the columns that they are in"
    )
