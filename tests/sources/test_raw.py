"""Where raw files may lie: parquet's wherever `pyarrow.fs` reaches, the others' in local folders."""

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import MovieLensConfig, download_movielens
from mtrec_ray.sources.registry import make_source
from mtrec_ray.sources.source import raw_folder

LOCAL = ["movielens", "xmarket", "rechorus"]


@pytest.mark.parametrize("source", LOCAL)
@pytest.mark.parametrize("raw", ["s3://bucket/raw", "gs://bucket/raw", "hdfs://host/raw", "ftp://host/raw"])
def test_a_source_of_local_files_refuses_a_uri_and_names_the_mend(source, raw):
    with pytest.raises(UserError, match=f"--raw '{raw}': source '{source}' reads local files only: copy its files"):
        make_source(source, {}, raw)


@pytest.mark.parametrize("source", LOCAL)
def test_a_file_uri_is_its_local_folder(source, tmp_path):
    folder = tmp_path / "raw files"
    folder.mkdir()
    assert raw_folder(source, folder.as_uri()) == raw_folder(source, str(folder)) == folder
    with pytest.raises(UserError, match=r"--raw 'file://.*' is not a folder"):
        make_source(source, {}, (tmp_path / "nowhere").as_uri())


def test_a_download_to_a_uri_is_refused_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--raw 's3://bucket/raw': source 'movielens' reads local files only"):
        download_movielens(MovieLensConfig(), "s3://bucket/raw")
    assert list(tmp_path.iterdir()) == []
