"""Epoch numbers of any unit, and those that are no moment."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.sources.epochs import epoch_us, timestamps_from_epoch, to_utc_micros

MOMENT = datetime(2024, 2, 29, 12, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(("unit", "ticks"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units(unit, ticks):
    values = np.array([int(MOMENT.timestamp()) * ticks])
    assert timestamps_from_epoch(values, unit)[0].as_py() == MOMENT
    assert to_utc_micros(pa.array([MOMENT], pa.timestamp(unit, "UTC")), "s")[0].as_py() == MOMENT


def test_naive_timestamps_and_other_zones_are_brought_to_utc():
    assert to_utc_micros(pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ms")), "s")[0].as_py() == MOMENT
    assert to_utc_micros(pa.array([MOMENT], pa.timestamp("us", "Europe/Oslo")), "s")[0].as_py() == MOMENT


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_no_number_overflows(values, unit):
    moments = timestamps_from_epoch(np.array(values, np.int64), unit).to_pylist()
    for value, moment in zip(values, moments, strict=True):
        wanted = value * 10**6 // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        if abs(wanted) < 10**16:
            assert epoch_us(moment) == wanted
        else:
            assert (moment.year > 2200) == (value > 0)


def test_missing_numbers_stay_missing():
    assert timestamps_from_epoch(np.array([np.nan, 0.5]), "s").to_pylist() == [
        None,
        datetime(1970, 1, 1, 0, 0, 0, 500_000, UTC),
    ]
    assert to_utc_micros(pa.array([None, 5], pa.int64()), "s").null_count == 1


def test_other_types_are_refused():
    with pytest.raises(UserError, match="string"):
        to_utc_micros(pa.array(["2024"]), "s")
    with pytest.raises(UserError, match="unit 'h'"):
        timestamps_from_epoch(np.array([1]), "h")
