"""One small service, written in many ways: the same lake, or an error that names file and column."""

# pyright: reportAttributeAccessIssue=false

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import UserError
from mtrec_ray.lake import build
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions
from mtrec_ray.sources.source import make_source
from mtrec_ray.streams.ordered import LocalReader

NUM_USERS, NUM_TITLES, NUM_EVENTS = 30, 12, 240
START_S = 1_704_067_200  # the first of January 2024
RNG = np.random.default_rng(0)
USERS = pa.table(
    {
        "user_id": pa.array(1_000 + np.arange(NUM_USERS)),
        "territory": pa.array(np.array(["US", "SE", "NA"])[np.arange(NUM_USERS) % 3]),
        "gender": pa.array([[1, 2, None][n % 3] for n in range(NUM_USERS)]),
        "premium": pa.array([[True, False][n % 2] for n in range(NUM_USERS)]),
    }
)
TITLES = pa.table(
    {
        "title_id": pa.array(7 + np.arange(NUM_TITLES)),
        "name": pa.array([f'Amélie № {n}, the "best"' for n in range(NUM_TITLES)]),
        "synopsis": pa.array([None if n % 4 == 0 else f"line one\nline {n}" for n in range(NUM_TITLES)]),
        "territories": pa.array([["US", "SE"] if n % 3 == 0 else None for n in range(NUM_TITLES)]),
    }
)
EVENTS = pa.table(
    {
        "user_id": pa.array(1_000 + RNG.integers(0, NUM_USERS, NUM_EVENTS)),
        "title_id": pa.array(7 + RNG.integers(0, NUM_TITLES, NUM_EVENTS)),
        "timestamp": pa.array(START_S + 3_601 * np.arange(NUM_EVENTS)),
    }
)
NUMBERS = ("int64", "int32", "uint64", "double", "float", "decimal128(20, 0)")
ID_TYPES = (*NUMBERS, "string", "large_string", "binary", "dictionary", "1.0", "1e3", "padded")
STAMPS = [f"timestamp[{unit}{zone}]" for unit in ("s", "ms", "us", "ns") for zone in ("", ", tz=Asia/Tokyo")]
TIME_TYPES = ("s", "ms", "us", "ns", "double", "float", "text", "zoned text", "decimal", *STAMPS)
MISSING = ("null", "nan", "empty", "blank", "text")
PARTITIONS = ("file", "files", "row groups", "hive", "glob", "leftovers", "other types")
WRITERS = ("pandas", "polars", "duckdb", "pyarrow", "spark")
COMPRESSIONS = ("none", "gzip", "zstd", "snappy")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")


@dataclass(frozen=True)
class Way:
    """One way to write the service."""

    writer: str
    is_csv: bool
    ids: str
    event_ids: str
    times: str
    missing: str
    partition: str
    compression: str
    encoding: str
    delimiter: str
    shuffled: bool


WAYS = st.builds(
    Way,
    writer=st.sampled_from(WRITERS),
    is_csv=st.booleans(),
    ids=st.sampled_from(ID_TYPES),
    event_ids=st.sampled_from(ID_TYPES),
    times=st.sampled_from(TIME_TYPES),
    missing=st.sampled_from(MISSING),
    partition=st.sampled_from(PARTITIONS),
    compression=st.sampled_from(COMPRESSIONS),
    encoding=st.sampled_from(ENCODINGS),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    shuffled=st.booleans(),
)


def typed_ids(ids: Any, kind: str) -> Any:
    if kind == "dictionary":
        return ids.cast(pa.string()).dictionary_encode()
    if kind == "binary":
        return ids.cast(pa.string()).cast(pa.binary())
    if kind.startswith("decimal"):
        return ids.cast(pa.decimal128(20, 0))
    if kind in ("1.0", "1e3", "padded"):
        form = {"1.0": "{}.0", "1e3": "{:.3e}", "padded": "  {} "}[kind]
        return pa.array([form.format(value) for value in ids.to_pylist()])
    return ids.cast(getattr(pa, {"double": "float64", "float": "float32"}.get(kind, kind))())


def typed_times(seconds: Any, kind: str) -> tuple[Any, str]:
    """The column and `timestamp_unit`."""
    if kind in ("s", "ms", "us", "ns"):
        return pc.multiply(seconds, {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind]), kind
    if kind in ("double", "float"):
        return pa.array(np.asarray(seconds).astype(np.float64 if kind == "double" else np.float32)), "s"
    if kind == "decimal":
        return seconds.cast(pa.decimal128(20, 0)), "s"
    times = seconds.cast(pa.timestamp("s"))
    if kind.endswith("text"):
        return pc.strftime(times, "%Y-%m-%dT%H:%M:%S" + "Z" * (kind == "zoned text")), "s"
    unit, _, zone = kind.removeprefix("timestamp[").rstrip("]").partition(", tz=")
    times = times.cast(pa.timestamp(unit))
    return (pc.assume_timezone(times, "UTC").cast(pa.timestamp(unit, zone)) if zone else times), "s"


def typed_missing(codes: Any, kind: str) -> Any:
    if kind == "null":
        return codes
    if kind == "nan":
        return codes.cast(pa.float64()).fill_null(float("nan"))
    word = {"empty": "", "blank": "  ", "text": "None"}[kind]
    return codes.cast(pa.string()).fill_null(word)


def write_service(folder: Path, way: Way) -> dict[str, Any]:
    """Write the three tables; returns the settings of the source."""
    times, unit = typed_times(EVENTS["timestamp"], way.times)
    users = USERS.set_column(0, "user_id", typed_ids(USERS["user_id"], way.ids))
    users = users.set_column(2, "gender", typed_missing(USERS["gender"], way.missing))
    titles = TITLES.set_column(0, "title_id", typed_ids(TITLES["title_id"], way.ids))
    if way.is_csv:
        listed = [None if names is None else "|".join(names) for names in TITLES["territories"].to_pylist()]
        titles = titles.set_column(3, "territories", pa.array(listed))
    events = pa.table(
        {name: typed_ids(EVENTS[name], way.event_ids) for name in ("user_id", "title_id")} | {"timestamp": times}
    )
    locations = {}
    for name, rows in {"users": users, "titles": titles, "events": events}.items():
        if way.shuffled:
            rows = rows.take(np.random.default_rng(len(name)).permutation(rows.num_rows))
        locations[name] = write_table(folder, name, rows, way)
    csv = {"encoding": way.encoding.replace("-sig", ""), "delimiter": way.delimiter} if way.is_csv else {}
    attributes = {"attributes": {"gender": None, "premium": None}, "num_evaluation_days": 2}
    return locations | attributes | csv | {"timestamp_unit": unit}


def write_table(folder: Path, name: str, rows: Any, way: Way) -> str:
    """Write one table as files; returns its location."""
    compressed = way.compression in ("gzip", "zstd")
    ending = {True: ".csv" + {"gzip": ".gz", "zstd": ".zst"}.get(way.compression, ""), False: ".parquet"}[way.is_csv]
    if way.partition in ("file", "row groups"):
        write_file(folder / f"{name}{ending}", rows, way, compressed)
        return f"{name}{ending}"
    target = folder / name
    target.mkdir()
    half = rows.num_rows // 2
    if way.partition == "hive" and name == "users":
        for territory in ("US", "SE", "NA"):
            part = rows.filter(pc.equal(rows["territory"], territory)).drop_columns("territory")
            (target / f"territory={territory}").mkdir()
            write_file(target / f"territory={territory}" / f"0{ending}", part, way, compressed)
        return name
    first = rows.slice(0, half)
    if way.partition == "other types":  # the newer file has another type of id
        first = first.set_column(0, first.schema.field(0).name, plain_ids(first.column(0)))
    write_file(target / f"a{ending.upper() if way.shuffled else ending}", first, way, compressed)
    write_file(target / f"b{ending}", rows.slice(half), way, compressed)
    if way.partition == "leftovers":
        for path in ("_temporary/0", ".ipynb_checkpoints"):
            (target / path).mkdir(parents=True)
            shutil.copy(target / f"b{ending}", target / path / f"b{ending}")
        (target / "_SUCCESS").touch()
        (target / f".b{ending}.crc").write_bytes(b"crc")
    return f"{name}/*" if way.partition == "glob" else name


def plain_ids(column: Any) -> Any:
    return pa.array([str(int(float(value))) for value in column.to_pylist()])


def write_file(path: Path, rows: Any, way: Way, compressed: bool) -> None:
    if way.is_csv:
        data = csv_bytes(rows, way)
        if way.encoding != "utf-8":
            data = data.decode().encode(way.encoding)
        with pa.output_stream(str(path), compression=way.compression if compressed else None) as file:
            file.write(data)
        return
    group = 7 if way.partition == "row groups" else None
    if way.writer == "pandas":
        rows.to_pandas().to_parquet(
            path, index=False, compression=None if way.compression == "none" else way.compression
        )
    elif way.writer == "polars":
        codec: Any = {"none": "uncompressed"}.get(way.compression, way.compression)
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        frame.write_parquet(path, compression=codec, row_group_size=group)
    elif way.writer == "duckdb":
        codec = {"none": "uncompressed"}.get(way.compression, way.compression)
        with duckdb.connect() as connection:
            connection.register("tmp", rows)
            connection.execute(f"copy tmp to '{path}' (format parquet, compression {codec})")
    else:
        is_spark = way.writer == "spark"
        pq.write_table(
            rows, path, compression=way.compression, row_group_size=group, use_deprecated_int96_timestamps=is_spark
        )


def csv_bytes(rows: Any, way: Way) -> bytes:
    if way.writer == "pandas":
        return rows.to_pandas().to_csv(index=False, sep=way.delimiter).encode()
    if way.writer == "polars":
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        frame = frame.with_columns(pl.selectors.binary().cast(pl.String))  # it writes no bytes to CSV
        return frame.write_csv(separator=way.delimiter).encode()
    if way.writer == "duckdb":
        with TemporaryDirectory() as folder, duckdb.connect() as connection:
            connection.register("tmp", rows)
            connection.execute(f"copy tmp to '{folder}/x.csv' (header, delimiter '{way.delimiter}')")
            return Path(folder, "x.csv").read_bytes()
    sink = pa.BufferOutputStream()
    plain = pa.table(
        {
            name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            for name, column in zip(rows.column_names, rows.columns, strict=True)
        }
    )
    pacsv.write_csv(plain, sink, pacsv.WriteOptions(delimiter=way.delimiter))
    return sink.getvalue().to_pybytes()


def lake_hash(way: Way) -> str:
    """Hash of the lake built from the service written in one way; UserError if refused."""
    with TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        raw.mkdir()
        config = write_service(raw, way)
        source = make_source("parquet", config, str(raw))
        return build_lake(source, f"{folder}/lake", BuildOptions(num_buckets=2)).manifest.lake_hash


PLAIN = Way("pyarrow", False, "int64", "int64", "s", "null", "file", "none", "utf-8", ",", False)


@pytest.fixture
def expected():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "map_tasks", LocalReader().map)
        yield lake_hash(PLAIN)


def check_ways(expected: str, num_ways: int, capsys: Any) -> None:
    ends: Counter = Counter()

    @settings(
        max_examples=num_ways,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(WAYS)
    def ends_well(way: Way) -> None:
        try:
            found = lake_hash(way)
        except UserError as error:
            message = str(error)
            assert "\n" not in message, way
            assert ".parquet" in message or ".csv" in message or ".PARQUET" in message or ".CSV" in message, (
                way,
                message,
            )
            assert "column" in message, (way, message)
            ends[message.partition("column ")[2]] += 1
        else:
            assert found == expected, way
            ends["the same lake"] += 1

    ends_well()
    with capsys.disabled():
        print(
            f"\n{num_ways} ways to write one service:",
            *(f"{count} {end}" for end, count in ends.most_common()),
            sep="\n  ",
        )
    assert ends["the same lake"] > num_ways / 2


def test_a_service_written_in_many_ways_is_one_lake(expected, capsys):
    check_ways(expected, 25, capsys)


@pytest.mark.long
def test_a_service_written_in_very_many_ways_is_one_lake(expected, capsys):
    check_ways(expected, 400, capsys)
