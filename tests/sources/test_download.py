"""Downloads from a local server: complete, interrupted and resumed, damaged."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtrec_ray.__main__ import explain
from mtrec_ray.errors import UserError
from mtrec_ray.sources import movielens
from mtrec_ray.sources.download import download_file
from mtrec_ray.sources.movielens import MovieLensConfig


class Server:
    """Serves `content` with Range; sends only `break_after` bytes once if that is set."""

    def __init__(self):
        self.content = bytes(range(256)) * 4_000
        self.break_after: int | None = None
        self.ranges: list[str | None] = []
        self.supports_ranges = True
        self.status: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requested = self.headers["Range"]
                outer.ranges.append(requested)
                start = int(requested[6:-1]) if requested and outer.supports_ranges else 0
                if outer.status or start >= len(outer.content):
                    self.send_error(outer.status or 416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.break_after])
                outer.break_after = None

            def log_message(self, format, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve_zip(self, *names: str) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name in names:
                archive.writestr(name, name)
        self.content = packed.getvalue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/file.zip"

    @property
    def checksum(self) -> str:
        return f"md5:{hashlib.md5(self.content).hexdigest()}"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def test_file_is_downloaded_with_progress(server, file):
    calls = []
    download_file(server.url, server.checksum, file, "stage", progress=lambda *state: calls.append(state))
    assert file.read_bytes() == server.content
    assert calls[-1] == ("stage", len(server.content), len(server.content))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("supports_ranges", [True, False])
def test_interrupted_download_is_resumed(server, file, supports_ranges):
    server.supports_ranges = supports_ranges
    server.break_after = 300_000
    with pytest.raises(UserError, match="run it again to continue") as broken:
        download_file(server.url, server.checksum, file)
    assert explain(broken.value)[0] == 75
    assert not file.exists()
    received = file.with_name("file.part").stat().st_size
    assert 0 < received <= 300_000
    download_file(server.url, server.checksum, file)
    assert file.read_bytes() == server.content
    assert server.ranges == [None, f"bytes={received}-"]


def test_complete_part_becomes_the_file_which_is_not_downloaded_again(server, file):
    file.with_name("file.part").write_bytes(server.content)
    download_file(server.url, server.checksum, file)
    assert file.read_bytes() == server.content
    server.ranges.clear()
    download_file(server.url, server.checksum, file)
    assert server.ranges == []


def test_damaged_content_is_removed_and_an_unreachable_server_is_an_error(server, file):
    file.with_name("file.part").write_bytes(b"wrong" * 100)
    with pytest.raises(UserError, match="checksum is md5"):
        download_file(server.url, server.checksum, file)
    assert list(file.parent.iterdir()) == []
    with pytest.raises(UserError, match="run it again") as unreachable:
        download_file("http://127.0.0.1:9/x", server.checksum, file)
    assert explain(unreachable.value)[0] == 75


@pytest.mark.parametrize(("status", "code"), [(404, 2), (500, 75), (503, 75)])
def test_an_answer_of_the_server_decides_whether_to_try_again(server, file, status, code):
    server.status = status
    with pytest.raises(UserError, match=f"HTTP Error {status}") as answered:
        download_file(server.url, server.checksum, file)
    assert explain(answered.value)[0] == code


def test_folder_that_cannot_be_written_to_is_named(server):
    with pytest.raises(UserError, match="cannot write to '/proc/raw'"):
        download_file(server.url, server.checksum, Path("/proc/raw/file.zip"))


@pytest.fixture
def serve_movielens(server, monkeypatch):
    """Serves an archive of the given files in GroupLens's place."""

    def serve(*names: str) -> None:
        server.serve_zip(*names)
        archives = {name: (layout, server.checksum) for name, (layout, _) in movielens.ARCHIVES.items()}
        monkeypatch.setattr(movielens, "ARCHIVES", archives)
        monkeypatch.setattr(movielens, "ARCHIVE_URL", server.url)

    return serve


def test_only_the_needed_files_of_movielens_are_unpacked_once(server, serve_movielens, tmp_path):
    serve_movielens("ml-1m/ratings.dat", "ml-1m/users.dat", "ml-1m/movies.dat", "ml-1m/../README")
    for _ in range(2):
        movielens.MovieLensSource.download(MovieLensConfig(dataset="ml-1m"), str(tmp_path / "raw"))
    assert (tmp_path / "raw" / "users.dat").read_text() == "ml-1m/users.dat"
    assert {path.name for path in tmp_path.rglob("*")} == {"raw", "ml-1m.zip", "ratings.dat", "users.dat", "movies.dat"}
    assert len(server.ranges) == 1


def test_archive_without_the_files_is_an_error(serve_movielens, tmp_path):
    serve_movielens("other.txt")
    with pytest.raises(UserError, match=r"does not hold 'u\.data'"):
        movielens.MovieLensSource.download(MovieLensConfig(), str(tmp_path))
