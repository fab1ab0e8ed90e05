import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medqua.core.errors import DataError
from medqua.train.data.download import download

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    ranges = True
    cut = 0  # bytes after which the connection ends
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut] if self.server.cut else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/x.npz"


def test_a_file_arrives_whole_and_nothing_else_stays(server, tmp_path):
    download(url(server), tmp_path / "a" / "x.npz", md5=MD5)
    assert (tmp_path / "a" / "x.npz").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.npz"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges = 100_000, ranges
    with pytest.raises(DataError, match="goes on where it stopped"):
        download(url(server), tmp_path / "x.npz", md5=MD5)
    assert not (tmp_path / "x.npz").exists()
    there = (tmp_path / "x.npz.partial").stat().st_size
    server.cut = 0
    download(url(server), tmp_path / "x.npz", md5=MD5)
    assert (tmp_path / "x.npz").read_bytes() == CONTENT
    assert server.asked[1] == f"bytes={there}-"


def test_a_download_that_only_lacked_its_check_is_finished(server, tmp_path):
    (tmp_path / "x.npz.partial").write_bytes(CONTENT)
    download(url(server), tmp_path / "x.npz", md5=MD5)
    assert (tmp_path / "x.npz").read_bytes() == CONTENT


def test_a_wrong_sum_removes_the_file(server, tmp_path):
    with pytest.raises(DataError, match="published is 000"):
        download(url(server), tmp_path / "x.npz", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_web_address(tmp_path, closed_port):
    with pytest.raises(DataError, match="failed"):
        download(f"http://127.0.0.1:{closed_port}/x", tmp_path / "x", md5=MD5)
    with pytest.raises(DataError, match="no http"):
        download("file:///etc/passwd", tmp_path / "x", md5=MD5)
