"""Downloads against a local server: whole, interrupted and resumed, damaged."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.download import download
from mtrec_ray.sources.movielens import MovieLensConfig, download_movielens


class Server:
    """Serves `content` at any path, with Range; sends only `break_after` bytes once when that is set."""

    def __init__(self):
        self.content = bytes(range(256)) * 4_000
        self.break_after: int | None = None
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers["Range"]
                outer.ranges.append(wanted)
                start = int(wanted[6:-1]) if wanted and outer.knows_ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/file.zip"

    @property
    def checksum(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_whole_file_with_progress(server, tmp_path):
    seen = []
    out = download(server.url, server.checksum, tmp_path / "file", lambda *state: seen.append(state))
    assert out.read_bytes() == server.content
    assert seen[-1] == (len(server.content), len(server.content))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_interrupted_download_goes_on_where_it_stopped(server, tmp_path, knows_ranges):
    server.knows_ranges = knows_ranges
    server.break_after = 300_000
    with pytest.raises(UserError, match="run it again to continue"):
        download(server.url, server.checksum, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").stat().st_size
    assert 0 < kept <= 300_000
    download(server.url, server.checksum, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.ranges == [None, f"bytes={kept}-"]


def test_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "file.part").write_bytes(server.content)
    download(server.url, server.checksum, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content


def test_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file").write_bytes(server.content)
    download(server.url, server.checksum, tmp_path / "file")
    assert server.ranges == []


def test_damaged_content_is_removed(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"wrong" * 100)
    with pytest.raises(UserError, match="checksum is sha256"):
        download(server.url, server.checksum, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_unreachable_server_and_unknown_checksum(server, tmp_path):
    with pytest.raises(UserError, match="run it again"):
        download("http://127.0.0.1:9/x", server.checksum, tmp_path / "file")
    with pytest.raises(UserError, match="should start with md5: or sha256:"):
        download(server.url, "crc:1", tmp_path / "file")


def test_movielens_is_unpacked(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("ratings.dat", "users.dat", "movies.dat", "../README"):
            archive.writestr(f"ml-1m/{name}", name)
    server.content = packed.getvalue()
    config = MovieLensConfig(dataset="ml-1m", url=server.url, checksum=server.checksum)
    download_movielens(config, str(tmp_path / "raw"))
    assert (tmp_path / "raw" / "users.dat").read_text() == "users.dat"
    assert not (tmp_path / "README").exists()
    download_movielens(config, str(tmp_path / "raw"))
    assert len(server.ranges) == 1


def test_archive_without_the_files(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("other.txt", "")
    server.content = packed.getvalue()
    with pytest.raises(UserError, match=r"does not hold 'u\.data'"):
        download_movielens(MovieLensConfig(url=server.url, checksum=server.checksum), str(tmp_path))
    with pytest.raises(UserError, match="needs its checksum"):
        download_movielens(MovieLensConfig(url=server.url), str(tmp_path))
