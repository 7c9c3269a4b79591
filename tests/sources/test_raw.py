"""The folder of raw files: local for all sources but parquet."""

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import MovieLensConfig, MovieLensSource
from mtrec_ray.sources.source import make_source, raw_folder

LOCAL = ["movielens", "xmarket", "rechorus"]


@pytest.mark.parametrize("source", LOCAL)
@pytest.mark.parametrize("raw", ["s3://bucket/raw", "gs://bucket/raw", "hdfs://host/raw", "ftp://host/raw"])
def test_uri_of_another_filesystem_is_an_error(source, raw):
    with pytest.raises(UserError, match=f"--raw '{raw}': source '{source}' reads local files only: copy its files"):
        make_source(source, {}, raw)


@pytest.mark.parametrize("source", LOCAL)
def test_no_folder_and_missing_folder_are_errors(source, tmp_path):
    with pytest.raises(UserError, match="--raw DIR"):
        make_source(source, {})
    for raw in (str(tmp_path / "nowhere"), (tmp_path / "nowhere").as_uri()):
        with pytest.raises(UserError, match=f"--raw '{raw}' is not a folder"):
            make_source(source, {}, raw)


def test_file_uri_is_its_local_folder(tmp_path):
    folder = tmp_path / "raw files"
    folder.mkdir()
    assert raw_folder("any", folder.as_uri()) == raw_folder("any", str(folder)) == folder


def test_download_to_a_uri_is_an_error_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--raw 's3://bucket/raw': source 'movielens' reads local files only"):
        MovieLensSource.download(MovieLensConfig(), "s3://bucket/raw")
    assert list(tmp_path.iterdir()) == []
