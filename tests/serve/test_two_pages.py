"""Test what two pages of one server do at the same moment."""

from pathlib import Path

import pytest
from tuned_run import make_base

pytest.importorskip("fastapi", reason="needs the extra serve")

from minigpt.runs.lock import delete_run
from minigpt.serve.api.app import make_state
from minigpt.serve.models import Catalog
from minigpt.serve.workbench import Workbench
from minigpt.serve.workbench.run_list import RunList
from minigpt.serve.workbench.starting import Texts


def test_the_texts_of_one_name_that_two_pages_send_do_not_mix(tmp_path: Path):
    texts = Texts(RunList([tmp_path / "runs"]))
    for part, done in (("1", False), ("2", False), ("3", True)):
        one, two = (texts.add("my.txt", key + part, part == "1", done, key) for key in "ab")
    assert (one, two) == ("sent: my.txt", "sent: my-2.txt")
    assert {file.name: file.read_text() for file in (tmp_path / "texts").iterdir()} == {
        "my.txt": "a1a2a3",
        "my-2.txt": "b1b2b3",
    }


def test_a_run_that_another_page_deletes_is_left_out_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("base", "talks"):
        make_base(tmp_path / name)
    bench = Workbench(make_state(Catalog([tmp_path]), None, "cpu"))
    found = bench.run_list.all()
    monkeypatch.setattr(bench.run_list, "all", lambda: found)
    delete_run(tmp_path / "talks")
    assert [run["name"] for run in bench.runs()["runs"]] == ["base"]
