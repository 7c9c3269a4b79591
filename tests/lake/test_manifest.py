"""The lake's hash changes with all that decides a run's result; damage is an error."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake, LakeFile, Manifest
from mtrec_ray.sources.calendar import Territory
from mtrec_ray.sources.source import Embeddings
from tests.processes import python

WINDOW = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))
MANIFEST = Manifest(
    source="by hand",
    notes=["small"],
    num_buckets=2,
    territories=[Territory(name="NO", region="north"), Territory(name="SE", region="north")],
    attributes={"gender": ["f", "m"], "age": ["young", "old"]},
    calendar=Calendar(window_start=WINDOW[0], window_end=WINDOW[1]),
    embeddings=Embeddings(
        user_width=8,
        title_width=12,
        interaction_width=8,
        num_folds=4,
        window_start=WINDOW[0],
        window_end=WINDOW[1],
        description="titles: categories | interactions; users: interactions",
    ),
    counts={"users": 4, "titles": 2},
    quarantined={"users/duplicate_user": 1},
    files={
        "users": [LakeFile(path=f"users/{digit}.parquet", rows=2, sha256=digit * 64) for digit in "12"],
        "titles": [LakeFile(path="titles/3.parquet", rows=2, sha256="3" * 64)],
    },
)


def _set(*path: str | int, to: Any) -> Callable[[dict], None]:
    def edit(document: dict) -> None:
        parent: Any = document
        for key in path[:-1]:
            parent = parent[key]
        assert parent[path[-1]] != to
        parent[path[-1]] = to

    return edit


def _reverse(key: str) -> Callable[[dict], None]:
    """Reverse the order of a mapping's keys."""
    return lambda document: document.update({key: dict(reversed(document[key].items()))})


DECIDES = {
    "content": _set("files", "users", 1, "sha256", to="4" * 64),
    "window start": _set("calendar", "window_start", to="2024-01-02T00:00:00Z"),
    "window end": _set("calendar", "window_end", to="2024-01-31T00:00:00Z"),
    "day length": _set("calendar", "day_s", to=3600),
    "evaluation days": _set("calendar", "num_evaluation_days", to=1),
    "order": _set("calendar", "ordered", to=False),
    "region": _set("territories", 0, "region", to="west"),
    "territory": _set("territories", 0, "name", to="FI"),
    "order of territories": lambda document: document["territories"].reverse(),
    "attribute value": _set("attributes", "gender", 0, to="w"),
    "order of attribute values": lambda document: document["attributes"]["age"].reverse(),
    "order of attributes": _reverse("attributes"),
    "user width": _set("embeddings", "user_width", to=4),
    "title width": _set("embeddings", "title_width", to=8),
    "interaction width": _set("embeddings", "interaction_width", to=0),
    "folds": _set("embeddings", "num_folds", to=2),
    "fold seed": _set("embeddings", "fold_seed", to=1),
    "embeddings' window start": _set("embeddings", "window_start", to=None),
    "embeddings' window end": _set("embeddings", "window_end", to=None),
    "buckets": _set("num_buckets", to=1),
    "counts": _set("counts", "users", to=5),
    "tested users": _set("trained_users_are_tested", to=True),
}
DESCRIPTIVE = {
    "source": _set("source", to="elsewhere"),
    "notes": _set("notes", to=[]),
    "quarantined": _set("quarantined", to={}),
    "description": _set("embeddings", "description", to=""),
    "order of tables": _reverse("files"),
    "order of counts": _reverse("counts"),
}


def _write(folder: Path, edit: Callable[[dict], None] = lambda document: None) -> str:
    document = json.loads(MANIFEST.model_dump_json())
    edit(document)
    (folder / "lake.json").write_text(json.dumps(document))
    return str(folder)


@pytest.mark.parametrize("edit", DESCRIPTIVE.values(), ids=DESCRIPTIVE.keys())
def test_hash_does_not_change_with_what_only_people_read(edit, tmp_path):
    assert Lake.open(_write(tmp_path, edit)).manifest.lake_hash == MANIFEST.lake_hash


def test_hash_changes_with_each_fact_that_decides_a_run(tmp_path):
    hashes = {name: Lake.open(_write(tmp_path, edit)).manifest.lake_hash for name, edit in DECIDES.items()}
    assert len({MANIFEST.lake_hash, *hashes.values()}) == 1 + len(DECIDES), hashes


@pytest.mark.parametrize("seed", ["0", "1"])
def test_hash_is_the_same_in_another_process(seed, tmp_path):
    code = "import sys; from mtrec_ray.lake.manifest import Lake; print(Lake.open(sys.argv[1]).manifest.lake_hash)"
    found = python(code, _write(tmp_path), env=os.environ | {"PYTHONHASHSEED": seed})
    assert found.strip() == MANIFEST.lake_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MANIFEST.model_dump_json()[:200], r"lake\.json' is damaged"),
        ('{"format_version": 1}', r"lake\.json is damaged"),
        ("[]", r"lake\.json is damaged"),
        ('{"format_version": 2}', "has format version 2, this mtrec_ray reads 1: build it again"),
        ('{"format_version": 0, "source": "old"}', "has format version 0, this mtrec_ray reads 1: build it again"),
    ],
)
def test_damaged_manifest_and_other_version_are_errors(text, message, tmp_path):
    (tmp_path / "lake.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Lake.open(str(tmp_path))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 half"], ids=["missing", "empty", "truncated"])
def test_unreadable_titles_error_names_the_file(content, tmp_path):
    (tmp_path / "titles").mkdir()
    if content is not None:
        (tmp_path / "titles" / "3.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged at titles/3\.parquet.*`mtrec lake check` lists all damage"):
        _ = Lake.open(_write(tmp_path)).titles
