"""Epoch numbers of any unit and size become timestamps."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import TICKS_PER_SECOND, DayCounts, timestamps_from_epoch, to_utc_micros

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = datetime(2024, 2, 29, 12, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(("unit", "ticks"), TICKS_PER_SECOND.items())
def test_numbers_and_timestamps_of_every_unit_become_microseconds(unit, ticks):
    values = np.array([int(TIME.timestamp()) * ticks])
    assert timestamps_from_epoch(values, unit)[0].as_py() == TIME
    assert to_utc_micros(pa.array([TIME], pa.timestamp(unit, "UTC")), "s")[0].as_py() == TIME


@pytest.mark.parametrize(
    ("time", "kind"), [(TIME.replace(tzinfo=None), pa.timestamp("ms")), (TIME, pa.timestamp("us", "Europe/Oslo"))]
)
def test_naive_timestamps_and_other_zones_become_utc(time, kind):
    assert to_utc_micros(pa.array([time], kind), "s")[0].as_py() == TIME


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.sampled_from(list(TICKS_PER_SECOND)))
def test_no_number_overflows(values, unit):
    times = timestamps_from_epoch(np.array(values, np.int64), unit).to_pylist()
    for value, time in zip(values, times, strict=True):
        micros = value * 10**6 // TICKS_PER_SECOND[unit]
        if abs(micros) < 10**16:
            assert (time - EPOCH) // (EPOCH.resolution) == micros
        else:
            assert (time.year > 2200) == (value > 0)


def test_missing_numbers_become_null_and_other_types_are_errors():
    half = datetime(1970, 1, 1, 0, 0, 0, 500_000, UTC)
    assert timestamps_from_epoch(np.array([np.nan, 0.5]), "s").to_pylist() == [None, half]
    assert to_utc_micros(pa.array([None, 5], pa.int64()), "s").null_count == 1
    assert to_utc_micros(pa.array([2**60 + 7, None], pa.int64()), "ns")[0].value == (2**60 + 7) // 1_000  # exact
    with pytest.raises(UserError, match="times of type bool cannot be read"):
        to_utc_micros(pa.array([True]), "s")


@pytest.mark.parametrize(
    "text",
    [
        *("1709209815", "1709209815.0", " 1709209815 ", "2024-02-29 12:30:15", "2024-02-29T12:30:15Z"),
        *("2024-02-29 13:30:15.000000000+01:00", "2024-02-29 12:30:15+00", "2024-02-29T12:30:15.000000+0000"),
        "2024-02-29 12:30:15 UTC",
    ],
)
def test_texts_of_every_writer_are_read(text):
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        times = to_utc_micros(pa.array([text, None, "", "NaT"], pa.string()).cast(kind), "s")
        assert times.to_pylist() == [TIME, None, None, None]


def test_dates_decimals_and_columns_without_a_value_are_read():
    midnight = TIME.replace(hour=0, minute=0, second=0)
    for dates in (pa.array([TIME.date()]), pa.array([TIME.date()], pa.date64()), pa.array(["2024-02-29"])):
        assert to_utc_micros(dates, "s").to_pylist() == [midnight]
    seconds = pa.array([int(TIME.timestamp())]).cast(pa.decimal128(20, 0))
    assert to_utc_micros(seconds, "s").to_pylist() == [TIME]
    assert to_utc_micros(pa.nulls(2), "s").to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.7e9], pa.float32()), "float32 numbers do not hold every second"),
        (pa.array([20240229, 20240301]), "20240229 looks like a date"),
        (pa.array(["20240229"]), "20240229 looks like a date"),
        (pa.array(["1709209815", "2024-02-29"]), "'1709209815' is no time"),
        (pa.array(["1.7040708e+09"]), r"'1\.7040708e\+09' has lost seconds"),
        (pa.array(["29.02.2024"]), r"'29\.02\.2024' is no time: write 2022-01-31T10:00:00Z"),
        (pa.array(["2024-13-01"]), "'2024-13-01' is no time"),
    ],
)
def test_times_that_could_be_read_wrongly_are_refused(column, message):
    with pytest.raises(UserError, match=message):
        to_utc_micros(column, "s")


FIRST = datetime(2022, 1, 1, tzinfo=UTC)
SERVICE = FIRST.timestamp() + np.random.default_rng(0).integers(0, 40 * 86_400, 4_200)


def believable(*times):
    days = DayCounts()
    days.add(timestamps_from_epoch(np.concatenate(times), "s"))
    return days.believable() or (None, None)


@pytest.mark.parametrize(
    "wild",
    [
        [],
        [0],
        [2**31 - 1],
        [0, 1, 34_560_000, 2**31 - 1, 4_102_444_800],
        [-5.0, 1e12],
        [1_600_000_000] * 42,
        [0] * 2_000 + [2**31 - 1] * 2_000,
        [1] * 5_000,
    ],
)
def test_a_few_wild_times_do_not_move_the_range_of_the_others(wild):
    assert believable(SERVICE, wild) == (FIRST, FIRST + timedelta(days=40))


def test_times_that_are_many_or_near_the_others_are_believed():
    start, end = believable(SERVICE, [FIRST.timestamp() - 35 * 86_400])
    assert (start, end) == (FIRST - timedelta(days=35), FIRST + timedelta(days=40))
    assert believable(SERVICE, [86_400] * 100)[0] == EPOCH + timedelta(days=1)
    assert believable(np.arange(0, 864_000, 3_600)) == (EPOCH, EPOCH + timedelta(days=10))
    assert believable([0, 2**31 - 1, 2**32 - 1])[0] == EPOCH
    assert believable([0, 0]) == (EPOCH, EPOCH + timedelta(days=1))
    growing = FIRST.timestamp() + 86_400 * np.concatenate([np.arange(0, 3_300, 100), np.arange(3_300, 3_650, 0.05)])
    assert believable(growing)[0] == FIRST
    assert believable([5]) == (EPOCH, EPOCH + timedelta(days=1))
    assert believable([]) == (None, None)


@pytest.mark.parametrize(
    ("times", "were_float32"),
    [
        (SERVICE.astype(np.float32), True),
        (SERVICE.astype(np.float32)[:10], True),
        ([float(str(time)) for time in SERVICE.astype(np.float32)], True),
        (SERVICE, False),
        (SERVICE - FIRST.timestamp(), False),
        *((SERVICE // step * step, False) for step in (10, 60, 300, 3_600, 8 * 3_600, 86_400)),
        *(((SERVICE - 7e8) // step * step, False) for step in (1, 10, 60, 300, 3_600, 8 * 3_600, 86_400)),
    ],
)
def test_times_that_were_float32_once_are_noticed(times, were_float32):
    days = DayCounts()
    for part in np.array_split(np.asarray(times).astype(np.int64), 4):
        days.add(timestamps_from_epoch(part, "s"))
    assert days.were_float32 == were_float32
