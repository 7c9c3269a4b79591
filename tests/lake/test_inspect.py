"""Checks of a lake: missing, changed and unlisted files, and an edited manifest."""

import json
from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.inspect import check_lake
from tests.lake.conftest import build

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_check_names_missing_and_changed_files(service, out):
    manifest, folder = build(service.source(), out), Path(out)
    users, events = manifest.files["users"], manifest.files["events"]
    (folder / users[0].path).unlink()
    data = bytearray((folder / events[1].path).read_bytes())
    data[100] ^= 1
    (folder / events[1].path).write_bytes(data)
    with pytest.raises(UserError, match="is damaged, build it again") as error:
        check_lake(LakeConfig(lake=out))
    assert sorted(str(error.value).splitlines()[1:]) == [
        f"{events[1].path}: content differs from lake.json (SHA-256)",
        f"{users[0].path}: is missing",
    ]


def test_check_names_files_that_the_lake_does_not_list(service, out):
    manifest = build(service.source(), out)
    (Path(out) / "events" / "stray.parquet").write_bytes(b"")
    found = check_lake(LakeConfig(lake=out))
    assert found.unlisted == ["events/stray.parquet"]
    assert "0 problems, 1 files that lake.json does not list" in str(found.tables()[0])
    assert (found.document()["ok"], found.document()["lake_hash"]) == (True, manifest.lake_hash)


def test_check_names_missing_and_truncated_titles(service, out):
    titles = out / Path(build(service.source(), out).files["titles"][0].path)
    titles.write_bytes(titles.read_bytes()[:50])
    with pytest.raises(UserError, match="content differs"):
        check_lake(LakeConfig(lake=out))
    titles.unlink()
    with pytest.raises(UserError, match=f"{titles.relative_to(out)}: is missing"):
        check_lake(LakeConfig(lake=out))


EDITED = {
    "counts": (lambda m: m["counts"].update(users=39), "users: files of 40 rows, counts has 39"),
    "rows of a file": (lambda m: m["files"]["titles"][0].update(rows=5), "6 rows, lake.json lists 5"),
    "no users": (lambda m: m["files"].pop("users"), "users: lake.json lists no file of bucket 0"),
    "attribute": (lambda m: m["attributes"].update(age=["young"]), "column 'age' is missing, should be string"),
    "attribute value": (lambda m: m["attributes"].update(gender=["f"]), "rows of users/undeclared_attribute_value"),
    "categorical": (lambda m: m["title_categoricals"].append("decade"), "column 'decade' is missing"),
    "width": (lambda m: m["embeddings"].update(user_width=3), r"column 'embedding' is fixed_size_binary\[4\], should"),
    "folds": (lambda m: m["embeddings"].update(num_folds=2), "column 'fold_embeddings' is missing"),
    "folds by time": (
        lambda m: m["embeddings"].update(fold_starts=["2024-01-02T00:00:00Z"]),
        "column 'projection' is missing",
    ),
    "fewer buckets": (lambda m: m.update(num_buckets=3), "rows belong to another bucket"),
    "more buckets": (lambda m: m.update(num_buckets=5), "users: lake.json lists no file of bucket 4"),
}


@pytest.mark.parametrize(("edit", "problem"), EDITED.values(), ids=EDITED.keys())
def test_check_names_what_differs_from_an_edited_manifest(service, out, edit, problem):
    build(service.source(), out)
    path = Path(out) / "lake.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=problem):
        check_lake(LakeConfig(lake=out))
