"""Small files are written completely or not at all; bad addresses are UserErrors."""

from pathlib import Path
from unittest.mock import Mock

import pyarrow.fs as pafs
import pytest

from mtrec_ray import files
from mtrec_ray.errors import UserError


def test_a_written_file_is_read_back_leaves_no_part_and_can_be_removed_once(tmp_path):
    uri = f"{tmp_path}/new/folder/file.json"
    files.write_json(uri, {"a": [1, None]})
    assert files.read_json(uri) == {"a": [1, None]}
    assert [path.name for path in Path(uri).parent.iterdir()] == ["file.json"]
    files.remove_file(uri)
    assert not files.exists(uri)
    with pytest.raises(FileNotFoundError):
        files.remove_file(uri)


def test_a_failed_write_leaves_the_old_content_and_no_part(tmp_path):
    uri = f"{tmp_path}/file"
    files.write_file(uri, b"old")
    with pytest.raises(TypeError):
        files.write_file(uri, "no bytes")  # pyright: ignore[reportArgumentType]
    assert files.read_file(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file(tmp_path):
    full = OSError(28, "Error writing bytes to file")
    fs = Mock(spec=pafs.FileSystem, open_output_stream=Mock(side_effect=full))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        files.write_atomic(fs, f"{tmp_path}/file", b"content")


def test_a_failed_rename_leaves_no_part(tmp_path):
    (tmp_path / "file" / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        files.write_file(f"{tmp_path}/file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_uri_and_a_path_are_the_same_file_which_is_replaced(tmp_path):
    files.write_file(f"{tmp_path}/file", b"long old content")
    files.write_file(f"file://{tmp_path}/file", b"new")
    assert files.read_file(f"{tmp_path}/file") == b"new"
    assert files.exists(f"file://{tmp_path}/file")
    assert not files.exists(f"{tmp_path}/other")


@pytest.mark.parametrize("uri", ["ftp://host/lake", "nonsense://", "s3://bucket/lake?no_such_option=1", "://"])
def test_an_address_that_cannot_be_opened_is_a_user_error(uri):
    with pytest.raises(UserError, match="cannot open"):
        files.resolve(uri)


def test_a_damaged_json_is_named(tmp_path):
    files.write_file(f"{tmp_path}/half.json", b'{"a": ')
    with pytest.raises(UserError, match=r"half\.json' is damaged"):
        files.read_json(f"{tmp_path}/half.json")


def test_relative_paths_become_absolute_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.absolute("lake") == f"{tmp_path}/lake"
    assert files.absolute("s3://bucket/lake") == "s3://bucket/lake"
    assert files.join("s3://bucket/lake/", "users", "x") == "s3://bucket/lake/users/x"
    fs, path = files.resolve("lake")
    assert isinstance(fs, pafs.LocalFileSystem)
    assert path == f"{tmp_path}/lake"
