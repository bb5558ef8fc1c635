"""Test which models a server lists, and that a name always means the checkpoint that is on disk now."""

import asyncio
import shutil
import threading
from pathlib import Path

import torch
from served import make_runs
from tuned_run import make_base

from minigpt.runs.load import LoadedRun
from minigpt.serve.engine import Engine
from minigpt.serve.limits import Limits
from minigpt.serve.models import Catalog, Listed, Models, as_listed
from minigpt.serve.workbench.inside import Inside


class SlowModels(Models):
    """Reads a model only when `may_read` is set, and counts how often."""

    def __init__(self, runs: Path):
        super().__init__(Catalog([runs]), Engine(), Limits(), "cpu")
        self.may_read, self.reads = threading.Event(), 0

    def _read(self, path: Path) -> LoadedRun:
        self.reads += 1
        assert self.may_read.wait(60)
        return super()._read(path)


def embedding(models: Models, name: str) -> torch.Tensor:
    async def found() -> torch.Tensor:
        async with models.use(name) as loaded:
            return loaded.run.model.embedding.weight.clone()

    return asyncio.run(found())


def test_a_model_is_read_to_the_end_though_its_client_went_away(tmp_path: Path) -> None:
    models = SlowModels(make_runs(tmp_path))

    async def use() -> int:
        async with models.use("base") as loaded:
            return loaded.run.step

    async def impatient() -> int:
        for _ in range(3):  # a client that gives up and tries again
            request = asyncio.ensure_future(use())
            await asyncio.wait({request}, timeout=0.1)
            request.cancel()
        models.may_read.set()
        return await use()

    assert asyncio.run(impatient()) == 2
    assert models.reads == 1


def test_a_run_that_is_deleted_and_trained_again_is_read_again(tmp_path: Path) -> None:
    models, inside = Models(Catalog([tmp_path]), Engine(), Limits(), "cpu"), Inside()
    make_base(tmp_path / "my", seed=1)
    listed = models.catalog.read()["my"]
    before, seen = embedding(models, "my"), inside.look(listed, "the cat", {})
    shutil.rmtree(tmp_path / "my")
    make_base(tmp_path / "my", seed=2)
    assert not torch.equal(embedding(models, "my"), before)
    assert inside.look(listed, "the cat", {})["loss"] != seen["loss"]


def test_a_checkpoint_that_was_written_again_or_deleted_does_not_stay_in_memory(tmp_path: Path) -> None:
    models = Models(Catalog([tmp_path]), Engine(), Limits(), "cpu")
    for seed in range(3):
        shutil.rmtree(tmp_path / "my", ignore_errors=True)
        make_base(tmp_path / "my", seed=seed)
        embedding(models, "my")
        assert len(models.loaded) == 1


def test_a_folder_without_runs_is_no_model(tmp_path: Path) -> None:
    assert Catalog([tmp_path]).read() == {}
    run = make_base(tmp_path / "my")
    step = run / "checkpoints" / "step-00000001"
    for path in (run, step):
        assert path.name in Catalog([path]).read()


def test_a_checkpoint_that_was_just_deleted_is_not_listed(tmp_path: Path) -> None:
    assert as_listed("my@9", tmp_path / "step-00000009") is None
    assert as_listed("my", tmp_path) == Listed("my", tmp_path, int(tmp_path.stat().st_mtime))
