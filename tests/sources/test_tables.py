"""Which files count as data: those that other tools would read, and a list of the rest."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.tables import locate_table, partition_values


def write(folder, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), folder / path)


def read(folder, location: str) -> tuple[list[str], list[str]]:
    found = locate_table(location, str(folder))
    return [found.shown(path) for path in found.paths], [found.shown(path) for path in found.left_out]


def test_leftovers_of_other_tools_are_no_data_and_are_named(tmp_path):
    leftovers = ["_temporary/0/a.parquet", ".ipynb_checkpoints/a-checkpoint.parquet", "_a.parquet", ".b.parquet"]
    write(tmp_path, "ev/a.parquet", "ev/b.PARQUET", "ev/c.pq", "ev/year=2024/000000_0", *(f"ev/{p}" for p in leftovers))
    (tmp_path / "ev" / "_SUCCESS").touch()
    (tmp_path / "ev" / "notes.txt").write_text("none")
    paths, left_out = read(tmp_path, "ev")
    assert paths == ["ev/a.parquet", "ev/b.PARQUET", "ev/c.pq", "ev/year=2024/000000_0"]
    assert left_out == sorted([*(f"ev/{path}" for path in leftovers), "ev/_SUCCESS", "ev/notes.txt"])
    assert read(tmp_path, "ev/_a.parquet") == (["ev/_a.parquet"], [])


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("ev/*.parquet", ["ev/a.parquet"]),
        ("ev/*", ["ev/a.parquet"]),
        ("*/old/?.parquet", ["ev/old/a.parquet"]),
        ("ev/**/*.parquet", ["ev/a.parquet", "ev/old/a.parquet"]),
        ("**", ["[x]/a.parquet", "ev/a.parquet", "ev/old/a.parquet"]),
        ("ev/[ab].parquet", ["ev/a.parquet"]),
        ("[x]", ["[x]/a.parquet"]),
        ("[x]/*.parquet", ["[x]/a.parquet"]),
        ("ev/_*.parquet", ["ev/_c.parquet"]),
        ("o*", []),
        ("ev/o*", ["ev/old/a.parquet"]),
    ],
)
def test_globs_match_as_a_shell_does(tmp_path, pattern, paths):
    write(tmp_path, "ev/a.parquet", "ev/old/a.parquet", "ev/_c.parquet", "[x]/a.parquet")
    for raw in (tmp_path, f"file://{tmp_path}"):
        if paths:
            assert read(raw, pattern)[0] == paths
        else:
            with pytest.raises(UserError, match="is missing: check the path and --raw"):
                read(raw, pattern)


def test_folders_of_hive_are_columns():
    assert partition_values("/raw/ev/territory=US/day=2024-01-01%2F2/a.parquet") == {
        "territory": "US",
        "day": "2024-01-01/2",
    }
    assert partition_values("territory=__HIVE_DEFAULT_PARTITION__/a=b=c/d.parquet") == {"territory": None, "a": "b=c"}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["ev/_delta_log/0.json", "ev/a.parquet"], "'.*ev' holds a table of format Delta"),
        (["ev/.hoodie/x", "ev/a.parquet"], "format Hudi"),
        (["ev/metadata/v1.metadata.json", "ev/data/a.parquet"], "format Iceberg"),
        (["ev/a.parquet", "ev/b.csv"], "holds files of several formats"),
        (["ev/a.json"], "names no Parquet or CSV file"),
        (["ev/a.parquet.bak"], r"a\.parquet\.bak: a Parquet file by content, not by name"),
    ],
)
def test_what_might_be_read_wrongly_is_refused(tmp_path, paths, message):
    for path in paths:
        if path.endswith((".parquet", ".bak")):
            write(tmp_path, path)
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("{}")
    with pytest.raises(UserError, match=message):
        read(tmp_path, "ev")
