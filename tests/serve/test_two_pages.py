"""Test what two pages of one server do at the same moment."""

from pathlib import Path

import pytest
from tuned_run import make_base

pytest.importorskip("fastapi", reason="needs the extra serve")

from minigpt.errors import StorageError, UserError
from minigpt.runs.lock import delete_run
from minigpt.serve.api.app import make_state
from minigpt.serve.models import Catalog
from minigpt.serve.workbench import Workbench
from minigpt.serve.workbench.run_list import RunList
from minigpt.serve.workbench.starting import MOST_UNFINISHED, Texts


def test_the_texts_of_one_name_that_two_pages_send_do_not_mix(tmp_path: Path):
    texts = Texts(RunList([tmp_path / "runs"]))
    for part, done in (("1", False), ("2", False), ("3", True)):
        one, two = (texts.add("my.txt", key + part, part == "1", done, key) for key in "ab")
    assert (one, two) == ("sent: my.txt", "sent: my-2.txt")
    assert {file.name: file.read_text() for file in (tmp_path / "texts").iterdir()} == {
        "my.txt": "a1a2a3",
        "my-2.txt": "b1b2b3",
    }


def test_a_page_that_is_closed_while_it_sends_leaves_no_part_for_ever(tmp_path: Path):
    texts = Texts(RunList([tmp_path / "runs"]))
    for key in range(20):
        texts.add("my.txt", "a", True, False, str(key))
    assert len(list((tmp_path / "texts").iterdir())) == MOST_UNFINISHED
    with pytest.raises(UserError, match="beginning of this text is missing"):
        texts.add("my.txt", "b", False, True, "0")
    assert texts.add("my.txt", "b", False, True, "19") == "sent: my.txt"


def test_a_part_that_cannot_be_written_does_not_keep_the_disk_full(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    texts, limits = Texts(RunList([tmp_path / "runs"])), resource.getrlimit(resource.RLIMIT_FSIZE)
    texts.add("my.txt", "a" * 900, True, False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError):
            texts.add("my.txt", "b" * 900, False, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "texts").iterdir()) == []
    with pytest.raises(UserError, match="beginning of this text is missing"):
        texts.add("my.txt", "c", False, True)


def test_a_run_that_another_page_deletes_is_left_out_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("base", "talks"):
        make_base(tmp_path / name)
    bench = Workbench(make_state(Catalog([tmp_path]), None, "cpu"))
    found = bench.run_list.all()
    monkeypatch.setattr(bench.run_list, "all", lambda: found)
    delete_run(tmp_path / "talks")
    assert [run["name"] for run in bench.runs()["runs"]] == ["base"]
