"""Test downloads from a real server on this machine: they end whole if they are cut, resumed, refused or run twice."""

import contextlib
import errno
import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minigpt import download
from minigpt.config import DataConfig
from minigpt.data.named_datasets import NAMED
from minigpt.data.sources import resolve
from minigpt.download import RemoteFile, fetch, locate
from minigpt.errors import DataError, StorageError

BODY = bytes(range(256)) * 8000
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; `breaks` says after how many bytes each of the next answers breaks off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks: list[int] = []
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.status: list[int] = []
        self.odd = ""
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.txt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.server.odd:
            getattr(self, f"send_{self.server.odd}")()
            return
        if self.server.status:
            self.send_error(self.server.status.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.knows_ranges else 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(BODY)
        self.wfile.write(BODY[start:end])

    def drip(self, piece: bytes, pause: float) -> None:
        """Send the piece again and again, until the test is over or the client has gone."""
        with contextlib.suppress(OSError):
            while not self.server.over.wait(pause):
                self.wfile.write(piece)

    def send_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.drip(bytes(1 << 18), 0)

    def send_slow(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.drip(b"x", 0.02)

    def send_header_slowly(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip(b"x", 0.02)

    def send_huge(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()
        self.wfile.write(b"x")

    def send_garbage(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "a lot")
        self.end_headers()
        self.wfile.write(b"not the file")

    def send_no_http(self) -> None:
        self.wfile.write(b"\xff\x00 hello?\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def test_a_file_arrives_with_progress(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = fetch(server.url, tmp_path / "deep" / "file.txt", [SHA], lambda *args: told.append(args))
    assert path.read_bytes() == BODY
    assert told[-1] == ("file.txt", len(BODY), len(BODY))
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_file_that_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path / "file.txt", [SHA])
    fetch(server.url, tmp_path / "file.txt", [SHA])
    assert len(server.ranges) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = [500_000, 300_000, 1]
    assert fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.01).read_bytes() == BODY
    assert server.ranges == [None, "bytes=500000-", "bytes=800000-", "bytes=800001-"]


def test_a_transfer_that_gave_up_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    server.breaks = [700_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DataError) as error:
        fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.001)
    assert server.url in str(error.value)
    assert "700,000 of 2,048,000" in str(error.value)
    assert (tmp_path / "file.txt.part").stat().st_size == 700_000
    assert not (tmp_path / "file.txt").exists()
    server.breaks, server.ranges = [], []
    assert fetch(server.url, tmp_path / "file.txt", [SHA]).read_bytes() == BODY
    assert server.ranges == ["bytes=700000-"]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.breaks = [500_000]
    assert fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.001).read_bytes() == BODY


def test_a_part_that_was_whole_already_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.txt.part").write_bytes(BODY)
    assert fetch(server.url, tmp_path / "file.txt", [SHA]).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.txt.part").write_bytes(BODY + b"more")
    assert fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.001).read_bytes() == BODY


def test_another_file_than_expected_is_refused_and_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.txt.part").write_bytes(b"something else, of an earlier run")
    with pytest.raises(DataError) as error:
        fetch(server.url, tmp_path / "file.txt", [SHA])
    assert "\n" not in str(error.value)
    assert SHA[:16] in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert fetch(server.url, tmp_path / "file.txt", [SHA]).read_bytes() == BODY


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.status = [503, 429]
    (tmp_path / "a.part").write_bytes(BODY[:1000])
    assert fetch(server.url, tmp_path / "a", [SHA], wait=0.001).read_bytes() == BODY
    server.status = [503, 429]
    assert fetch(server.url, tmp_path / "new", [SHA], wait=0.001).read_bytes() == BODY
    server.ranges.clear()
    server.status = [404] * 5
    with pytest.raises(DataError, match="Not Found"):
        fetch(server.url, tmp_path / "b", [SHA], wait=0.001)
    assert len(server.ranges) == 1


def test_many_who_want_the_same_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000]
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(server.url, tmp_path / "f", [SHA], wait=0.01).read_bytes()))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 5
    assert len(server.ranges) == 2


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("endless", "sends more than 2 MB"),
        ("huge", "sends more than 2 MB"),
        ("slow", "is too slow"),
        ("header_slowly", "no answer in 0.2 seconds"),
        ("garbage", "sha256"),
        ("no_http", "cannot be fetched"),
    ],
)
def test_a_server_that_misbehaves_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, words: str
) -> None:
    monkeypatch.setattr(download, "MOST", 2 << 20)
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    server.odd = odd
    with pytest.raises(DataError) as error:
        fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.001)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "file.txt").exists()


def test_a_server_that_breaks_after_each_byte_is_given_up(server: Server, tmp_path: Path) -> None:
    server.breaks = [1] * 50
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(server.url, tmp_path / "file.txt", [SHA], wait=0.001)
    assert len(server.ranges) < 10


def test_a_place_that_cannot_be_written_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a directory")
    with pytest.raises(StorageError, match="MINIGPT_CACHE"):
        fetch(server.url, tmp_path / "file" / "x.txt", [SHA])


def test_a_disk_that_fills_up_at_the_end_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from minigpt.download import fetch\n"
        "from minigpt.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: fetch(sys.argv[1], Path(sys.argv[2]), ['0'])\n"
        "except StorageError as error: print(error)\n"
    )
    server.breaks = [5000]  # less than a buffer, which is written when the file is closed
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "file.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "cannot be written (File too large); free some space, or name another cache" in done.stdout, done.stderr


def test_who_waits_for_another_download_is_told_and_takes_its_file(server: Server, tmp_path: Path) -> None:
    path, waits, told = tmp_path / "file.txt", threading.Event(), list[str]()

    def progress(label: str, done: int, total: int | None) -> None:
        told.append(label)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        with download._lock(tmp_path, lambda: None):
            found = pool.submit(fetch, server.url, path, (SHA,), progress)
            assert waits.wait(10)
            path.write_bytes(BODY)
        assert found.result() == path
    assert told == ["waiting for another process, which downloads file.txt"] and not server.ranges


def test_a_file_system_without_locks_downloads_all_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert fetch(server.url, tmp_path / "file.txt", (SHA,)).read_bytes() == BODY


# --- named sources


def test_without_network_and_mirror_one_line_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url
    server.server_close()  # nothing listens at this address now
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    file = RemoteFile("some/file.txt", url, (SHA,))
    with pytest.raises(DataError) as error:
        locate(file)
    message = str(error.value)
    assert "\n" not in message
    for part in (url, str(tmp_path / "datasets" / "some" / "file.txt"), "MINIGPT_DATA"):
        assert part in message


def test_the_mirror_comes_before_the_cache_and_that_before_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path / "mirror"))
    file = RemoteFile("some/file.txt", server.url, (SHA,))
    cached = tmp_path / "cache" / "datasets" / "some" / "file.txt"
    assert locate(file) == cached
    assert locate(file) == cached
    assert len(server.ranges) == 1
    mirrored = tmp_path / "mirror" / "some" / "file.txt"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(BODY)
    assert locate(file) == mirrored


def test_an_altered_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    place = tmp_path / "datasets" / NAMED["shakespeare"]["train"].file.path
    place.parent.mkdir(parents=True)
    place.write_text("First Citizen: not the published text")
    with pytest.raises(DataError, match="delete it"):
        resolve(DataConfig(source="shakespeare"))
    (tmp_path / "datasets").rename(tmp_path / "mirror")
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path / "mirror"))
    with pytest.raises(DataError, match="correct the mirror"):
        resolve(DataConfig(source="shakespeare"))


def test_the_mirror_has_what_is_published(mirror: Path) -> None:
    for name in ("shakespeare", "wikitext-2"):
        assert list(resolve(DataConfig(source=name)).parts) == list(NAMED[name])


def test_every_published_file_has_an_address_and_a_sha256() -> None:
    hosts = ("raw.githubusercontent.com", "wikitext.smerity.com", "huggingface.co", "mattmahoney.net")
    for name, parts in NAMED.items():
        for part in parts.values():
            assert part.file.url.split("/")[2] in hosts
            assert part.file.path.split("/")[0] == {"shakespeare": "tinyshakespeare"}.get(name, name)
            assert part.file.sha256
            assert all(len(bytes.fromhex(digest)) == 32 for digest in part.file.sha256)
