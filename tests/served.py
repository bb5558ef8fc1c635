"""Start a server on a free port of this machine, with tiny runs of random weights, for the tests of the API."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tuned_run import TEXT, make_base

from minigpt.config import ModelConfig
from minigpt.config.finetune import LoRAConfig
from minigpt.model import GPT
from minigpt.serve.limits import Limits
from minigpt.tokenizers.chat_template import Template
from minigpt.training.finetune import adapter, add_lora, save_adapter
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState

PROMPT = TEXT[17:40]


def make_runs(folder: Path) -> Path:
    """`base` with two checkpoints and an adapter, and `talks`, which has a chat template."""
    for seed, name in ((3, "base"), (5, "talks")):
        make_base(folder / name, seed=seed)
    loaded = checkpoint.load(folder / "base" / "checkpoints" / "step-00000001")
    weights = GPT(ModelConfig(**(loaded.state.model or {})), seed=7).weights()
    state = CheckpointState(model=loaded.state.model, train=TrainState(step=2, finished=True))
    checkpoint.save(folder / "base" / "checkpoints" / "step-00000002", {"model": weights}, state)
    Template().save(folder / "talks")
    config, model = LoRAConfig(), GPT.from_pretrained(folder / "base")
    add_lora(model, config)
    with torch.no_grad():
        for tensor in adapter(model).values():
            tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(folder / "base" / "adapters" / "pirate", model, config, base=folder / "base")
    return folder


@contextmanager
def served(runs: Path, limits: Limits | None = None, **options: Any) -> Iterator[str]:
    """The address of a server of the runs, in a thread, until the end."""
    import uvicorn

    from minigpt.serve.api.app import make_app, make_state
    from minigpt.serve.models import Catalog
    from minigpt.serve.server import listen
    from minigpt.serve.workbench import Workbench

    bound = listen("127.0.0.1", 0)
    state = make_state(Catalog([runs]), limits, "cpu")
    app = make_app(state, routers=[Workbench(state).router()], **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
