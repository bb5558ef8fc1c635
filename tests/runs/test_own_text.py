"""Test that a loaded run gives the text that it was trained on, or says that it cannot."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from tuned_run import TEXT, make_base

from minigpt import load_config, load_run
from minigpt.config import dump_config
from minigpt.errors import DataError
from minigpt.runs.load import LoadedRun


def loaded(folder: Path) -> LoadedRun:
    """The run `base` in the folder, whose text is cats.txt there."""
    (folder / "cats.txt").write_text(TEXT)
    file = make_base(folder / "base") / "config.yaml"
    file.write_text(dump_config(load_config(file, {"data.source": str(folder / "cats.txt")})))
    return load_run(folder / "base", "cpu")


def test_a_text_that_has_changed_since_the_training_is_named(tmp_path: Path) -> None:
    run = loaded(tmp_path)
    (run.path / "receipt.json").write_text(json.dumps({"data": {"sha256": run.prepared().sha256}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.prepared()
    # half of the text is gone: what is now held out was trained on
    (tmp_path / "cats.txt").write_text(TEXT[: len(TEXT) // 2])
    with pytest.warns(UserWarning, match=r"cats\.txt: has changed since .*base was trained"):
        run.prepared()


def test_a_model_alone_has_no_text_even_in_the_folder_of_a_run(tmp_path: Path) -> None:
    run, export = loaded(tmp_path), tmp_path / "base" / "hf"
    export.mkdir()
    (export / "config.json").write_text("{}")
    with pytest.raises(DataError, match="is a model alone, so it has no text of its own"):
        replace(run, path=export, checkpoint=export, step=0).prepared()
    (tmp_path / "base" / "config.yaml").unlink()
    with pytest.raises(DataError, match="is a model alone"):
        run.prepared()


def test_another_text_is_prepared_like_the_runs_own(tmp_path: Path) -> None:
    run, other = loaded(tmp_path), tmp_path / "other.txt"
    other.write_text(TEXT[: len(TEXT) // 2])
    assert run.prepared(other).sha256 != run.prepared().sha256
    assert run.prepared(str(other)).meta["source"] == str(other)
