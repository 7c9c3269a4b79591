"""Builds: counts with known answers, the same bytes whatever the readers, bad rows named, nothing half-built left."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import errno
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.build_config import BuildOptions
from mtrec_ray.lake.check import check_lake
from mtrec_ray.lake.describe import describe_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.validate import BadRowsError
from mtrec_ray.lake.write import BuildSite
from mtrec_ray.sources.registry import make_source
from tests.lake.conftest import START

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FOUR = BuildOptions(num_buckets=4)
SMALL = {"users": 600, "territories": 5, "titles": 40, "user_width": 8, "title_width": 4}


def test_rows_are_those_of_the_source_each_in_its_users_bucket(service, tmp_path):
    manifest = build_lake(service.source(), str(tmp_path / "lake"), FOUR)
    lake = Lake.open(str(tmp_path / "lake"))
    assert manifest.counts == {"users": 40, "events": 200, "titles": 6}
    assert lake.read("users")["user_id"].to_pylist() != []
    for bucket in range(4):
        users, events = lake.read("users", bucket), lake.read("events", bucket)
        assert set(bucket_of(user_keys(users["user_id"].to_numpy()), 4)) <= {bucket}
        assert set(events["user_id"].to_pylist()) <= set(users["user_id"].to_pylist())
        assert events.equals(events.sort_by([(c, "ascending") for c in ("user_id", "timestamp", "title_id")]))
        numbers = [int(user_id.split("-")[1]) for user_id in users["user_id"].to_pylist()]
        assert fixed_width_matrix(users["embedding"])[:, 0].tolist() == numbers
    assert lake.titles["title_id"].to_pylist() == [f"title-{n}" for n in range(6)]
    assert check_lake(str(tmp_path / "lake")).problems == []
    assert check_lake(str(tmp_path / "lake")).leftovers == []


@pytest.mark.parametrize("name", ["a+b", "a,b", "a/b", "none", "all", " a", "a\t", ""])
def test_attributes_that_no_combination_could_name_are_refused(service, tmp_path, name):
    source = service.source(attributes={name: ["f", "m"]}, user_columns={name: "gender"})
    with pytest.raises(UserError, match=re.escape(f"attribute {name!r}: combinations are written as gender+age")):
        build_lake(source, str(tmp_path / "lake"), FOUR)
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("names", [("income", "income_low"), ("income_high", "income"), ("a", "none_low")])
def test_attributes_that_would_share_a_figure_s_key_are_refused(service, tmp_path, names):
    """`ndcg@10/income_low` would be the figure of hiding `income_low` and the low bound of hiding `income`."""
    columns = dict.fromkeys(names, "gender")
    source = service.source(attributes={name: ["f", "m"] for name in names}, user_columns=columns)
    with pytest.raises(UserError, match="is named like a bound of"):
        build_lake(source, str(tmp_path / "lake"), FOUR)
    assert not (tmp_path / "lake").exists()


def test_same_bytes_for_one_or_several_readers_and_any_order_of_rows(service, tmp_path):
    first = build_lake(service.source(), str(tmp_path / "one"), BuildOptions(num_buckets=4, readers=1))
    service.users.reverse()
    service.events.sort(key=lambda row: row["title_id"])
    service.titles.reverse()
    second = build_lake(service.source(rows_per_part=7), str(tmp_path / "two"), FOUR)
    assert first.lake_hash == second.lake_hash


def test_synthetic_users_do_not_depend_on_the_bucket_count(tmp_path):
    for buckets in (3, 7):
        build_lake(make_source("synthetic", SMALL), str(tmp_path / f"{buckets}"), BuildOptions(num_buckets=buckets))
    few, many = (Lake.open(str(tmp_path / name)) for name in ("3", "7"))
    for table, keys in {"users": ["user_id"], "events": ["user_id", "timestamp", "title_id"]}.items():
        order = [(key, "ascending") for key in keys]
        assert few.read(table).sort_by(order).equals(many.read(table).sort_by(order))
    assert few.manifest.content_hashes["titles"] == many.manifest.content_hashes["titles"]
    assert not check_lake(few.uri).problems
    assert len(list((tmp_path / "3" / "truth" / "users").glob("*/*.parquet"))) == 3


def test_describe_counts_by_territory(service, tmp_path):
    build_lake(service.source(num_evaluation_days=2), str(tmp_path / "lake"), FOUR)
    rows = {row.territory: row for row in describe_lake(str(tmp_path / "lake"), active_days=1)}
    assert {name: row.users for name, row in rows.items()} == {"NO": 20, "SE": 20}
    assert {name: row.titles_offered for name, row in rows.items()} == {"NO": 6, "SE": 3}
    assert {name: row.local_titles for name, row in rows.items()} == {"NO": 3, "SE": 0}
    assert sum(row.window_events for row in rows.values()) == 7 * 24
    assert sum(row.test_events for row in rows.values()) == 200 - 7 * 24
    assert sum(row.active_users for row in rows.values()) == 24


def test_events_before_the_window_make_nobody_active(service, tmp_path):
    window = {"window_start": START + timedelta(days=6), "num_evaluation_days": 2}
    build_lake(service.source(**window), str(tmp_path / "lake"), FOUR)
    assert sum(row.active_users for row in describe_lake(str(tmp_path / "lake"), active_days=90)) == 24


def _spoil(service) -> dict[str, int]:
    """One bad row of each kind; reasons and totals."""
    service.users += [
        dict(service.users[1]),
        service.users[2] | {"user_id": None},
        service.users[2] | {"user_id": "lost", "territory": "XX"},
        service.users[2] | {"user_id": "homeless", "territory": None},
        service.users[2] | {"user_id": "other", "gender": "x"},
        service.users[2] | {"user_id": "nan", "embedding": [float("nan"), 1.0]},
        service.users[2] | {"user_id": "inf", "embedding": [1e6, 1.0]},
        service.users[2] | {"user_id": "wide", "embedding": [1.0, 1.0, 1.0]},
    ]
    service.titles += [dict(service.titles[0]), service.titles[0] | {"title_id": "far", "territories": ["XX"]}]
    event = service.events[0]
    service.events += [
        event | {"user_id": "nobody"},
        event | {"user_id": "wide"},
        event | {"title_id": "nothing"},
        event | {"timestamp": None},
        event | {"timestamp": -1},
        event | {"timestamp": 10**17},
        event | {"user_id": None},
        dict(event),
    ]
    return {
        "events/null_timestamp": 1,
        "events/null_user_id": 1,
        "events/timestamp_out_of_range": 2,
        "events/unknown_title": 1,
        "events/unknown_user": 2,
        "titles/duplicate_title": 1,
        "titles/unknown_territory": 1,
        "users/duplicate_user": 1,
        "users/embedding_not_finite": 2,
        "users/embedding_width": 1,
        "users/no_territory": 1,
        "users/null_user_id": 1,
        "users/undeclared_attribute_value": 1,
        "users/unknown_territory": 1,
    }


def test_bad_rows_are_named_with_totals_and_nothing_is_left(service, tmp_path):
    wanted = _spoil(service)
    with pytest.raises(BadRowsError) as found:
        build_lake(service.source(), str(tmp_path / "lake"), FOUR)
    assert found.value.totals == wanted
    assert "unknown_title: 1 rows" in str(found.value)
    assert '"title_id": "nothing"' in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_quarantine_puts_bad_rows_aside_and_counts_them(service, tmp_path):
    wanted = _spoil(service)
    options = BuildOptions(num_buckets=4, on_bad_rows="quarantine")
    manifest = build_lake(service.source(), str(tmp_path / "lake"), options)
    assert manifest.quarantined == wanted
    assert manifest.counts == {"users": 40, "events": 201, "titles": 6}
    aside = [pq.read_table(path) for path in (tmp_path / "lake" / "quarantine").glob("events/*.parquet")]
    assert sorted(reason for rows in aside for reason in rows["reason"].to_pylist()).count("unknown_user") == 2
    assert check_lake(str(tmp_path / "lake")).problems == []


def test_missing_column_is_named_with_its_file_and_the_mend(service, tmp_path):
    source = service.source(event_columns={"timestamp": "when"})
    with pytest.raises(UserError, match=r"a\.parquet: column 'when' .* is missing"):
        build_lake(source, str(tmp_path / "lake"), FOUR)


def test_full_disk_in_mid_build_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="no space left"):
        build_lake(_failing_source(), str(tmp_path / "lake"), FOUR)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_replacing_keeps_the_old_lake(service, tmp_path):
    out = str(tmp_path / "lake")
    old = build_lake(service.source(), out, FOUR)
    with pytest.raises(UserError, match="no space left"):
        build_lake(_failing_source(), out, BuildOptions(num_buckets=4, overwrite=True))
    assert Lake.open(out).manifest == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "raw"]


def _failing_source():
    from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource

    class FullDisk(SyntheticSource):
        def complete_bucket(self, users, events):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return FullDisk(SyntheticConfig.model_validate(SMALL))


def test_existing_lake_is_replaced_only_when_told(service, tmp_path):
    out = str(tmp_path / "lake")
    build_lake(service.source(), out, FOUR)
    with pytest.raises(UserError, match="overwrite"):
        build_lake(service.source(), out, FOUR)
    service.events.pop()
    manifest = build_lake(service.source(), out, BuildOptions(num_buckets=2, overwrite=True))
    assert Lake.open(out).manifest == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "raw"]


def test_object_storage_is_written_in_place_and_committed_by_the_manifest(service, tmp_path, monkeypatch):
    """The path of S3 and its like, tried on a local folder: no rename, `lake.json` last, old files removed after."""
    out = str(tmp_path / "lake")
    build_lake(service.source(), out, FOUR)
    kept = frozenset(str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file())
    monkeypatch.setattr(BuildSite, "open", lambda out, overwrite: BuildSite(out, out, in_place=True, kept=kept))
    with pytest.raises(UserError, match="no space left"):
        build_lake(_failing_source(), out, FOUR)
    assert check_lake(out).problems == check_lake(out).leftovers == []
    service.events.pop()
    build_lake(service.source(), out, FOUR)
    report = check_lake(out)
    assert report.problems == report.leftovers == []
    assert report.num_rows["events"] == 199


KILLED = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.build_config import BuildOptions
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource
class Slow(SyntheticSource):
    def complete_bucket(self, users, events):
        time.sleep(300)
build_lake(Slow(SyntheticConfig(users=100)), sys.argv[2], BuildOptions(num_buckets=2))
"""


def test_killed_build_is_no_lake_and_is_cleaned_by_the_next(service, tmp_path):
    import ray

    out = tmp_path / "lake"
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen([sys.executable, "-c", KILLED, address, str(out)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("lake.building-*/.staging/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(UserError, match="another build"):
        build_lake(service.source(), str(out), FOUR)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("lake.building-*"))
    with pytest.raises(UserError, match="no lake"):
        Lake.open(str(out))
    build_lake(service.source(), str(out), FOUR)
    assert not check_lake(str(out)).problems
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "raw"]


def test_check_names_what_was_changed(service, tmp_path):
    out = tmp_path / "lake"
    manifest = build_lake(service.source(), str(out), FOUR)
    users, events = manifest.files["users"], manifest.files["events"]
    (out / users[0].path).unlink()
    data = bytearray((out / events[1].path).read_bytes())
    data[100] ^= 1
    (out / events[1].path).write_bytes(data)
    (out / "events" / "stray.parquet").write_bytes(b"")
    report = check_lake(str(out))
    assert any(users[0].path in problem and "missing" in problem for problem in report.problems)
    assert any(events[1].path in problem and "SHA-256" in problem for problem in report.problems)
    assert report.leftovers == ["events/stray.parquet"]
    assert "2 problems, 1 files that lake.json does not list" in report.summary()
    assert report.as_dict()["lake_hash"] == manifest.lake_hash


def test_check_goes_on_without_titles(service, tmp_path):
    out = tmp_path / "lake"
    titles = out / build_lake(service.source(), str(out), FOUR).files["titles"][0].path
    titles.write_bytes(titles.read_bytes()[:50])
    assert [problem.split(": ")[1][:7] for problem in check_lake(str(out)).problems] == ["content"]
    titles.unlink()
    assert check_lake(str(out)).problems == [f"{titles.relative_to(out)}: is missing"]


def test_real_xmarket(real_data: Path, tmp_path):
    manifest = build_lake(make_source("xmarket", {}, str(real_data / "xmarket")), str(tmp_path / "lake"))
    assert manifest.counts["users"] == 25_082
    assert manifest.counts["events"] == 209_683 + 6_466 + 7_109 + 2_697
    assert manifest.counts["candidates"] == 2_697
    rows = {row.territory: row for row in describe_lake(str(tmp_path / "lake"))}
    assert {name: row.test_events for name, row in rows.items()} == {
        "s1": 6_466,
        "s2": 7_109,
        "s3": 0,
        "t1": 2_697,
        "t2": 0,
    }
    sizes = pc.list_value_length(Lake.open(str(tmp_path / "lake")).read("candidates")["title_ids"])
    assert pc.unique(sizes).to_pylist() == [100]


def test_real_movielens(real_data: Path, tmp_path):
    manifest = build_lake(make_source("movielens", {}, str(real_data / "movielens-100k")), str(tmp_path / "lake"))
    assert manifest.counts == {"users": 943, "events": 100_000, "titles": 1_682}
    rows = {row.territory: row for row in describe_lake(str(tmp_path / "lake"))}
    assert rows["zip-9"].users == 170
    assert rows["zip-other"].users == 18
    assert sum(row.window_events + row.test_events for row in rows.values()) == 100_000


def test_unwritable_place_is_named(service):
    with pytest.raises(UserError, match="cannot write a lake at '/proc/lake'"):
        build_lake(service.source(), "/proc/lake", FOUR)


def test_lake_on_a_file_uri(service, tmp_path):
    build_lake(service.source(), f"file://{tmp_path}/lake", FOUR)
    assert pafs.LocalFileSystem().get_file_info(f"{tmp_path}/lake/lake.json").is_file
    assert not check_lake(f"file://{tmp_path}/lake").problems
