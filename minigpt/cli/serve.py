"""Serve runs: `minigpt serve`."""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.console import loading
from minigpt.errors import UserError

NEEDED = ("fastapi", "uvicorn")


@dataclass(frozen=True)
class Serve:
    """Open your runs as a page in the browser, and serve them to any client of OpenAI's API.

    minigpt serve
    minigpt serve runs/my --port 8080
    minigpt serve runs/my --host 0.0.0.0 --api-key "a long secret"

    A client's base URL is http://127.0.0.1:8000/v1, and a model has the run's name: my; my@500 for the checkpoint of
    step 500; my+pirate for an adapter. Many texts are written at once; each text is the same as if it were written
    alone.

    Only this machine can reach the server, unless you give --host; then every client must send a key.
    """

    COMMON: ClassVar = ("host", "port", "api_key", "open", "precision")

    runs: Positional[tuple[PathText, ...]] = ()
    """Run directories, checkpoints or Hugging Face directories, loaded at the start (default: all runs in runs/, each
    loaded at its first use; if there is none yet, you can train the first one on the page)."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """The port; 0 takes a free one."""
    api_key: str | None = None
    """The key that clients must send (default: none if only this machine can reach the server, else a new one, which is
    printed). It is also read from MINIGPT_API_KEY, which other users of this machine cannot see."""
    allow_host: tuple[str, ...] = ()
    """Other names of this server, such as that of a proxy in front of it."""
    open: bool = False
    """Open the page in the browser."""
    metrics: bool = False
    """Offer /metrics, for Prometheus."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16", "int8", "int4", "auto"] = "fp32"
    """Precision of the weights, as in minigpt generate."""
    memory: float | None = None
    """Gigabytes for all models together (default: half of the free memory)."""
    max_texts: int = 256
    """Texts that a model writes at once."""
    max_queue: int = 512
    """Texts that may wait; a client above this number must try again later."""
    max_tokens: int = 4096
    """Largest number of new tokens in one text."""
    max_seconds: float = 300.0
    """Longest time of one request, in seconds."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Serve, argv, "serve")
    check_installed()
    for name in ("max_texts", "max_queue", "max_tokens", "max_seconds", "memory"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a finite number above 0")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port {args.port}: choose from 0 to 65535")
    runs = [Path(run) for run in args.runs] or [Path("runs")]
    key = _key(args.api_key)
    loading()
    from minigpt.layout import no_such_run
    from minigpt.serve.limits import Limits
    from minigpt.serve.server import serve

    for run in map(Path, args.runs):
        if not run.exists():
            raise no_such_run(run)
    limits = Limits(
        texts=args.max_texts,
        queue=args.max_queue,
        tokens=args.max_tokens,
        seconds=args.max_seconds,
        memory=None if args.memory is None else int(args.memory * 1e9),
    )
    serve(
        runs,
        host=args.host,
        port=args.port,
        key=key,
        names=args.allow_host,
        open_browser=args.open,
        metrics=args.metrics,
        limits=limits,
        device=args.device,
        precision=args.precision,
        preload=bool(args.runs),
    )
    return 0


def check_installed(names: Sequence[str] = NEEDED) -> None:
    """Raise UserError for packages that are not installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(f"minigpt serve needs {' and '.join(missing)}; install with: pip install 'minigpt[serve]'")


def _key(given: str | None) -> str | None:
    """The key of the flag, else of the environment. Raises UserError for a key that a header cannot hold."""
    key = given if given is not None else os.environ.get("MINIGPT_API_KEY")
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        name = "MINIGPT_API_KEY" if given is None else "--api-key"
        raise UserError(f"{name}: use letters, digits and signs of ASCII, without spaces around them")
    return key
