"""Downloads from a small server on this machine that can be told to misbehave."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cae_raw.data import cache_dir, download
from cae_raw.data.download import Remote, fetch, locate
from cae_raw.errors import InputError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the first word of the path says with which fault."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        fault = self.path.split("/")[1]
        body, status, headers = CONTENT, 200, {}
        start = int(re.sub(r"\D", "", self.headers.get("Range", "")) or 0)
        if fault == "missing":
            return self.send_error(404)
        if fault == "html":
            body, headers = b"<html>log in</html>", {"Content-Type": "text/html"}
        elif fault == "plainhtml":
            body = b"<html>log in</html>".ljust(len(CONTENT))
        elif fault == "short":
            body = CONTENT[:1000]
        elif fault == "wrong":
            body = CONTENT[::-1]
        elif fault == "endless":
            body, headers = CONTENT + CONTENT, {"X-No-Length": "1"}
        elif start and fault != "norange":
            headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
            body, status = CONTENT[start:], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "X-No-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "breaks":  # half of what is left, then the line goes dead
            body = body[: len(body) // 2 + 1]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    requests: list[tuple[str, str | None]]

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is part of the tests."""

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{fault}/file.bin"

    def remote(self, *faults: str) -> Remote:
        digest = hashlib.sha256(CONTENT).hexdigest()
        urls = tuple(self.url(fault) for fault in faults)
        return Remote("file.bin", len(CONTENT), f"sha256:{digest}", urls)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_reports_progress_and_stays(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(server.remote("good"), tmp_path / "new", lambda *args: seen.append(args))
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("downloading file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) >= 2
    fetch(server.remote("good"), tmp_path / "new")
    assert len(server.requests) == 1  # the second time it is there
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("html", "web page"),
        ("plainhtml", "wrong checksum"),
        ("short", "1000 bytes offered instead of 512000"),
        ("wrong", "wrong checksum"),
        ("missing", "HTTP 404"),
        ("endless", "longer than the published file"),
    ],
)
def test_faults_are_named_and_nothing_is_kept(
    server: Server, tmp_path: Path, fault: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        fetch(server.remote(fault), tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (server.url(fault), "--data-dir", "--dataset shapes"):
        assert part in message
    assert {path.name for path in tmp_path.iterdir()} <= {"file.bin.lock"}


@pytest.mark.parametrize("fault", ["html", "plainhtml", "short", "wrong", "missing", "endless"])
def test_the_next_source_is_tried(server: Server, tmp_path: Path, fault: str) -> None:
    assert fetch(server.remote(fault, "good"), tmp_path).read_bytes() == CONTENT


def test_a_broken_line_is_resumed(server: Server, tmp_path: Path) -> None:
    path = fetch(server.remote("breaks", "good"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1] == ("/good/file.bin", f"bytes={HALF + 1}-")


def test_a_line_that_always_breaks_keeps_what_came(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ROUNDS", 2)
    with pytest.raises(InputError, match=r"line broke after \d+ of 512000"):
        fetch(server.remote("breaks"), tmp_path)
    part = tmp_path / "file.bin.part"
    assert CONTENT.startswith(part.read_bytes())
    assert part.stat().st_size > HALF
    assert not (tmp_path / "file.bin").exists()
    # A later process goes on from there.
    assert fetch(server.remote("good"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None
    assert not part.exists()


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(server.remote("norange"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"<html>" * 10, b"x" * len(CONTENT), b"x" * 2 * len(CONTENT)])
def test_a_bad_part_is_thrown_away(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    assert fetch(server.remote("good"), tmp_path).read_bytes() == CONTENT


def test_a_complete_part_needs_no_line(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server.remote("missing"), tmp_path).read_bytes() == CONTENT


def test_a_bad_file_in_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    assert fetch(server.remote("good"), tmp_path).read_bytes() == CONTENT


def test_no_network_names_every_source(tmp_path: Path) -> None:
    urls = ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b")
    with pytest.raises(InputError, match=r"/a \(.*refused.*/b \(.*refused"):
        fetch(Remote("f", 1, "md5:0", urls), tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="CAE_RAW_CACHE"):
        fetch(Remote("f", 1, "md5:0", ()), tmp_path / "file" / "cache")


def test_writing_trouble_is_not_blamed_on_the_source(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").mkdir()
    with pytest.raises(InputError, match="cannot store file"):
        fetch(server.remote("good"), tmp_path)


def test_locate_prefers_local_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    roots = (tmp_path / "data", tmp_path / "cache")
    assert locate(roots, ["file.bin"], server.remote("good"), None) == roots[1] / "file.bin"
    (roots[0] / "file.bin").write_bytes(b"own")
    assert locate(roots, ["file.bin"], server.remote("missing"), None) == roots[0] / "file.bin"


def test_two_threads_share_one_download(server: Server, tmp_path: Path) -> None:
    remote = server.remote("good")
    threads = [threading.Thread(target=fetch, args=(remote, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAE_RAW_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("CAE_RAW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "cae-raw"
    if os.name == "posix":
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert cache_dir() == tmp_path / ".cache" / "cae-raw"
