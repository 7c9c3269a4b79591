"""Builds: known counts, equal bytes, bad rows, and no half-built lake."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake import write
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions, EmbedConfig, LakeConfig
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.inspect import check_lake, show_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.validate import BadRowsError
from mtrec_ray.lake.write import list_files, write_lock
from mtrec_ray.sources.source import make_source
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource
from tests.lake.conftest import build, verified

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SMALL = {"users": 600, "territories": 5, "titles": 40, "user_width": 8, "title_width": 4}


def names_beside(out: str) -> list[str]:
    return sorted(path.name for path in Path(out).parent.iterdir())


def test_rows_are_those_of_the_source_in_their_users_bucket(service, out):
    manifest, lake = build(service.source(), out), Lake.open(out)
    assert manifest.counts == {"users": 40, "events": 200, "titles": 6}
    assert lake.read("users").num_rows == 40
    for bucket in range(4):
        users, events = lake.read("users", bucket), lake.read("events", bucket)
        assert set(bucket_of(user_keys(users["user_id"].to_numpy()), 4)) <= {bucket}
        assert set(events["user_id"].to_pylist()) <= set(users["user_id"].to_pylist())
        assert events.equals(events.sort_by([(c, "ascending") for c in ("user_id", "timestamp", "title_id")]))
        numbers = [int(user_id.split("-")[1]) for user_id in users["user_id"].to_pylist()]
        assert fixed_width_matrix(users["embedding"])[:, 0].tolist() == numbers
    assert lake.titles["title_id"].to_pylist() == [f"title-{n}" for n in range(6)]
    verified(out)


def test_name_that_the_lake_cannot_hold_is_an_error(service, out):
    source = service.source()
    twice = [*source.facts.territories, source.facts.territories[0]]
    source.facts = source.facts.model_copy(update={"territories": twice})
    with pytest.raises(UserError, match="territory 'NO' is named twice"):
        build(source, out)
    assert not Path(out).exists()


def test_bytes_do_not_depend_on_parts_and_order_of_rows(service, tmp_path):
    first = build(service.source(), str(tmp_path / "one"))
    service.users.reverse()
    service.events.sort(key=lambda row: row["title_id"])
    service.titles.reverse()
    second = build(service.source(rows_per_part=7), str(tmp_path / "two"))
    assert first.lake_hash == second.lake_hash


def test_synthetic_users_do_not_depend_on_the_bucket_count(tmp_path):
    for buckets in (3, 7):
        build(make_source("synthetic", SMALL), str(tmp_path / f"{buckets}"), num_buckets=buckets)
    few, many = (Lake.open(str(tmp_path / name)) for name in ("3", "7"))
    for table, keys in {"users": ["user_id"], "events": ["user_id", "timestamp", "title_id"]}.items():
        order = [(key, "ascending") for key in keys]
        assert few.read(table).sort_by(order).equals(many.read(table).sort_by(order))
    assert few.manifest.content_hashes["titles"] == many.manifest.content_hashes["titles"]
    verified(few.uri)


def test_description_counts_by_territory(service, out):
    build(service.source(num_evaluation_days=2), out)
    description = show_lake(LakeConfig(lake=out))
    rows = description.metrics.set_index("territory")
    assert rows.loc["NO", ["users", "titles_offered", "local_titles"]].tolist() == [20, 6, 3]
    assert rows.loc["SE", ["users", "titles_offered", "local_titles"]].tolist() == [20, 3, 0]
    sums = rows[["window_events", "test_events", "active_users"]].to_numpy().sum(axis=0).tolist()
    assert sums == [7 * 24, 200 - 7 * 24, 40]
    assert description.document()["territories"][0]["active_fraction"] == 1
    assert len(description.tables()) == 2


def add_bad_rows(service) -> dict[str, int]:
    """One bad row of each kind; returns their number by reason."""
    user, title, event = service.users[2], service.titles[0], service.events[0]
    service.users += [
        dict(service.users[1]),
        user | {"user_id": None},
        user | {"user_id": "lost", "territory": "XX"},
        user | {"user_id": "homeless", "territory": None},
        user | {"user_id": "other", "gender": "x"},
        user | {"user_id": "none-finite", "embedding": [float("nan"), 1.0]},
        user | {"user_id": "inf", "embedding": [1e6, 1.0]},
        user | {"user_id": "wide", "embedding": [1.0, 1.0, 1.0]},
    ]
    service.titles += [dict(title), title | {"title_id": "far", "territories": ["XX"]}]
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


def test_bad_rows_are_reported_with_totals_and_nothing_is_left(service, out):
    reasons = add_bad_rows(service)
    with pytest.raises(BadRowsError) as error:
        build(service.source(), out)
    assert error.value.totals == reasons
    assert "unknown_title: 1 rows" in str(error.value)
    assert '"title_id": "nothing"' in str(error.value)
    assert names_beside(out) == ["raw"]


def test_quarantine_holds_bad_rows_and_the_manifest_counts_them(service, out):
    reasons = add_bad_rows(service)
    manifest = build(service.source(), out, on_bad_rows="quarantine")
    assert manifest.quarantined == reasons
    assert manifest.counts == {"users": 40, "events": 201, "titles": 6}
    rejected = [pq.read_table(path) for path in (Path(out) / "quarantine").glob("events/*.parquet")]
    assert sorted(reason for rows in rejected for reason in rows["reason"].to_pylist()).count("unknown_user") == 2
    verified(out)


class FullDisk(SyntheticSource):
    def __init__(self):
        super().__init__(SyntheticConfig.model_validate(SMALL))

    def complete_bucket(self, users, events):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_nothing_or_the_old_lake(service, out):
    with pytest.raises(UserError, match="no space left"):
        build(FullDisk(), out)
    assert names_beside(out) == ["raw"]
    old = build(service.source(), out)
    with pytest.raises(UserError, match="no space left"):
        build(FullDisk(), out, overwrite=True)
    assert Lake.open(out).manifest == old
    verified(out)


def test_existing_lake_is_replaced_only_with_overwrite(service, out):
    build(service.source(), out)
    with pytest.raises(UserError, match="overwrite"):
        build(service.source(), out)
    service.events.pop()
    manifest = build(service.source(), out, num_buckets=2, overwrite=True)
    assert Lake.open(out).manifest == manifest
    assert names_beside(out) == ["lake", "raw"]


@pytest.mark.parametrize("names", [["notes.txt"], [".lock", "notes.txt"], [".staging"], ["users/a.parquet"]])
def test_folder_of_other_files_is_not_overwritten(service, out, names):
    for name in names:
        (Path(out) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(out) / name).write_text("mine")
    with pytest.raises(UserError, match="exists and is no lake"):
        build(service.source(), out, overwrite=True)
    assert all((Path(out) / name).read_text() == "mine" for name in names)


def test_file_and_unwritable_folder_at_the_lakes_path_are_errors(service, out):
    Path(out).write_text("mine")
    for path in (out, "/proc/lake"):
        with pytest.raises(UserError, match=f"cannot write a lake at '{path}'"):
            build(service.source(), path)
    assert Path(out).read_text() == "mine"


def test_lake_of_a_build_that_ended_meanwhile_is_not_overwritten(service, out, monkeypatch):
    """Another build commits after the first look at the folder, before this one holds the lock."""
    listed, source = [{}], service.source()
    build(source, out)
    monkeypatch.setattr(write, "list_files", lambda uri: listed.pop() if listed else list_files(uri))
    with pytest.raises(UserError, match="there is a lake"):
        build(source, out)
    verified(out)


def test_lake_is_not_embedded_during_a_build_of_it(service, out):
    build(service.source(user_width=0), out)
    with write_lock(out), pytest.raises(UserError, match=r"process \d+ on .* is writing the lake"):
        embed_lake(EmbedConfig.model_validate({"lake": out, "text": {"model": None}}))
    verified(out)


def test_quarantine_of_the_replaced_lake_is_removed(service, out):
    add_bad_rows(service)
    build(service.source(), out, on_bad_rows="quarantine")
    service.events.pop()
    build(service.source(), out, on_bad_rows="quarantine", overwrite=True)
    verified(out)
    service.users, service.titles, service.events = service.users[:40], service.titles[:6], service.events[:200]
    build(service.source(), out, overwrite=True)
    assert not (Path(out) / "quarantine").exists()


KILLED = """
import sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
from mtrec_ray.lake import write
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions
from mtrec_ray.sources.synthetic import SyntheticConfig, SyntheticSource
class Slow(SyntheticSource):
    def complete_bucket(self, users, events):
        time.sleep(300)
build_lake(Slow(SyntheticConfig(users=100)), sys.argv[2], BuildOptions(num_buckets=2, overwrite=True))
"""


@pytest.mark.parametrize("replaces", [False, pytest.param(True, marks=pytest.mark.long)], ids=["new", "overwrite"])
def test_killed_build_leaves_no_lake_or_the_old_one_and_the_next_removes_its_files(service, out, tmp_path, replaces):
    import ray

    old = build(service.source(), out) if replaces else None
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen([sys.executable, "-c", KILLED, address, out])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("lake/.staging/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(UserError, match="is writing the lake"):
        build(service.source(), out, overwrite=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(2):
        if old:
            assert Lake.open(out).manifest == old
            check_lake(LakeConfig(lake=out))
        else:
            with pytest.raises(UserError, match="no lake"):
                Lake.open(out)
        with pytest.raises(UserError, match="no space left"):
            build(FullDisk(), out, overwrite=True)
    build(service.source(), out, overwrite=True)
    verified(out)
    assert names_beside(out) == ["lake", "raw"]


def test_real_xmarket_has_its_published_counts(real_data: Path, out):
    summary = build_lake(make_source("xmarket", {}, str(real_data / "xmarket")), out, BuildOptions(num_buckets=4))
    num_rows = summary.metrics.set_index("table")["num_rows"].to_dict()
    assert {name: num_rows[name] for name in ("users", "events", "candidates")} == {
        "users": 25_082,
        "events": 209_683 + 6_466 + 7_109 + 2_697,
        "candidates": 2_697,
    }
    test_events = show_lake(LakeConfig(lake=out)).metrics.set_index("territory")["test_events"].to_dict()
    assert test_events == {"s1": 6_466, "s2": 7_109, "s3": 0, "t1": 2_697, "t2": 0}
    sizes = pc.list_value_length(Lake.open(out).read("candidates")["title_ids"])
    assert pc.unique(sizes).to_pylist() == [100]


def test_real_movielens_has_its_published_counts(real_data: Path, out):
    summary = build_lake(make_source("movielens", {}, str(real_data / "movielens-100k")), out)
    assert summary.document()["counts"] == {"users": 943, "events": 100_000, "titles": 1_682}
    rows = show_lake(LakeConfig(lake=out)).metrics.set_index("territory")
    assert rows["users"][["zip-9", "zip-other"]].tolist() == [170, 18]
    assert rows[["window_events", "test_events"]].to_numpy().sum() == 100_000


def test_lake_may_be_at_a_file_uri_or_relative_path(service, out, monkeypatch):
    build(service.source(), f"file://{out}")
    assert (Path(out) / "lake.json").is_file()
    verified(f"file://{out}")
    monkeypatch.chdir(Path(out).parent)
    build(service.source(), "lake", overwrite=True)
    verified("lake")
