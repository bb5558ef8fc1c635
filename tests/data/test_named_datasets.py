"""Test WikiText-103, TinyStories, text8 and enwik8 with small stand-ins in the form of the published files."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cli_run import fails
from split_text import split_of

from minigpt.cli import main
from minigpt.config import DataConfig
from minigpt.data import open_corpus
from minigpt.data.named_datasets import NAMED
from minigpt.errors import DataError, EncodingError


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror, which `publish` fills."""
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "mirror"


def publish(
    folder: Path, name: str, files: dict[str, bytes], patch: pytest.MonkeyPatch, url: str | None = None
) -> None:
    """Put files of other content where those of a named text lie, and have their sha256 expected."""
    parts = dict(NAMED[name])
    for split, part in parts.items():
        data = files[part.file.path.split("/")[1]]
        path = folder / part.file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        address = part.file.url if url is None else f"{url}/{part.file.path}"
        file = replace(part.file, url=address, sha256=(hashlib.sha256(data).hexdigest(),))
        parts[split] = replace(part, file=file)
    patch.setitem(NAMED, name, parts)  # pyright: ignore[reportArgumentType]  a dict in truth


def packed(members: dict[str, bytes]) -> bytes:
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return box.getvalue()


def texts(name: str, split: str) -> list[str]:
    return split_of(DataConfig(source=name), split)


def test_wikitext_103_has_its_three_files(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"train": " \n = A title = \n \n one <unk>\n", "val": " two\n", "test": " naïve three\n"}
    names = {"train": "train", "val": "valid", "test": "test"}
    members = {f"wikitext-103/wiki.{names[split]}.tokens": text.encode() for split, text in content.items()}
    publish(mirror, "wikitext-103", {"wikitext-103-v1.zip": packed(members)}, monkeypatch)
    assert {split: texts("wikitext-103", split) for split in content} == {s: [t] for s, t in content.items()}
    assert not open_corpus(DataConfig(source="wikitext-103")).many


def test_tinystories_is_a_document_a_story(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = "Once.\n\nThe end.\n<|endoftext|>\nTwice.\n<|endoftext|>\n<|endoftext|>\nThrice.\n<|endoftext|>\n"
    files = {"TinyStoriesV2-GPT4-train.txt": train.encode(), "TinyStoriesV2-GPT4-valid.txt": b"A.\n<|endoftext|>\nB."}
    publish(mirror, "tinystories", files, monkeypatch)
    assert texts("tinystories", "train") == ["Once.\n\nThe end.", "Twice.", "Thrice."]
    assert texts("tinystories", "val") == ["A.", "B."]
    assert open_corpus(DataConfig(source="tinystories")).splits == ("train", "val")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text8", "enwik8"])
def test_a_hundred_million_bytes_are_cut_at_90_and_95_million(
    name: str, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = bytearray(b"anarchism originated " * 5_000_000)[:100_000_000]
    if name == "enwik8":  # characters of 3, 2 and 4 bytes on the borders and at the end
        for at, char in ((90_000_000 - 1, "€"), (95_000_000 - 1, "é"), (100_000_000 - 2, "😀")):
            text[at : at + len(char.encode())] = char.encode()
    publish(mirror, name, {f"{name}.zip": packed({name: bytes(text[:100_000_000])})}, monkeypatch)
    got = {split: "".join(texts(name, split)).encode() for split in ("train", "val", "test")}
    more = (2, 1, 0) if name == "enwik8" else (0, 0, 0)  # bytes of the character that a border cuts
    assert len(got["train"]) == 90_000_000 + more[0]
    assert len(got["val"]) == 5_000_000 - more[0] + more[1]
    whole = text[:100_000_000] if name == "text8" else text[: 100_000_000 - 2]
    assert got["train"] + got["val"] + got["test"] == bytes(whole)


def test_another_archive_and_other_bytes_are_one_line(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(mirror, "text8", {"text8.zip": packed({"text9": b"longer"})}, monkeypatch)
    with pytest.raises(DataError, match="is not a zip archive that holds text8") as error:
        texts("text8", "train")
    assert "\n" not in str(error.value)
    publish(mirror, "text8", {"text8.zip": packed({"text8": b"ab\xffcd"})}, monkeypatch)
    with pytest.raises(EncodingError, match="byte 2"):
        texts("text8", "train")


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder to whom gives a name of its own, as one of the real sites does."""

    def do_GET(self) -> None:
        if self.headers.get("User-Agent", "").startswith("minigpt/"):
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a web site that serves tmp_path/site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_is_fetched_once_and_a_damaged_download_is_thrown_away(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    files = {
        "TinyStoriesV2-GPT4-train.txt": b"One day.\n<|endoftext|>\n" * 3,
        "TinyStoriesV2-GPT4-valid.txt": b"A day.",
    }
    publish(tmp_path / "site", "tinystories", files, monkeypatch, site)
    served = tmp_path / "site" / "tinystories" / "TinyStoriesV2-GPT4-train.txt"
    served.write_bytes(b"One dax.\n<|endoftext|>\n" * 3)
    fails(capsys, ["data", "inspect", "tinystories", "--json"], served.name, "it was deleted, try again")
    kept = tmp_path / "cache" / "datasets" / "tinystories"
    assert not list(kept.glob("*train*"))
    served.write_bytes(files[served.name])
    assert main(["data", "inspect", "tinystories", "--json"]) == 0
    served.unlink()
    assert texts("tinystories", "train") == ["One day."] * 3
    assert sorted(path.name for path in kept.iterdir()) == sorted(files)
