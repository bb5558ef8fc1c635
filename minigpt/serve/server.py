"""Listen on a socket and serve with uvicorn until Ctrl-C."""

import secrets
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from types import FrameType

import uvicorn

from minigpt.console import harmless, tell
from minigpt.errors import UserError, first_names
from minigpt.runtime.device import pick_device
from minigpt.serve.api.app import make_app, make_state
from minigpt.serve.api.guard import LOOPBACK
from minigpt.serve.engine import Engine
from minigpt.serve.limits import Limits
from minigpt.serve.models import Catalog
from minigpt.serve.workbench import Workbench

GOODBYE = 2
"""After Ctrl-C, unfinished answers get this many seconds."""


class Server(uvicorn.Server):
    """uvicorn that stops the engine first at Ctrl-C, so that each stream ends with an error and [DONE]."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: stop the engine, then the server."""
        self.engine.end()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio needs this protocol, to set TCP_NODELAY
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, sys.platform != "win32")
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: cannot listen there ({why}); choose another --port or --host") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    return f"[{host}]" in LOOPBACK or host in LOOPBACK or host.startswith("127.")


def serve(
    runs: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    names: Sequence[str] = (),
    open_browser: bool = False,
    metrics: bool = False,
    limits: Limits | None = None,
    device: str = "auto",
    precision: str = "fp32",
    preload: bool = False,
) -> None:
    """Serve runs until Ctrl-C.

    Args:
        runs: run directories, or folders of them; see `Catalog`.
        host: if this is not a loopback address, other machines can reach the server, and they need a key.
        port: 0 takes a free one.
        key: what clients must send (default: none if only this machine can ask, else a new one, which is printed).
        names: other names of this server, such as that of a proxy in front of it.
        open_browser: open the server's page.
        metrics, limits, device, precision: see `make_app`.
        preload: load the models at the start; else each at its first use.

    Raises:
        UserError: the address or the device cannot be used.
    """
    pick_device(device)  # else every request would fail
    here = is_loopback(host)
    if key is None and (names or not here):
        key = secrets.token_urlsafe(24)
        tell(f"other machines can reach this server, so it asks for a key: {key}")
    catalog = Catalog(runs)
    models = [name for name in catalog.read() if "@" not in name and "+" not in name]
    bound = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    hosts = {*LOOPBACK, host, *(name.lower() for name in names)} if here or names else None
    state = make_state(catalog, limits, device, precision)
    routers = [Workbench(state).router()]
    app = make_app(state, hosts=hosts, key=key, metrics=metrics, preload=models if preload else (), routers=routers)
    none = f"no model in {harmless(first_names([run.absolute() for run in runs]))} yet; the page can train the first"
    tell(f"serving {harmless(first_names(models)) or none}, at {address}/v1")
    tell(f"the page: {address}; Ctrl-C ends it")
    if open_browser:
        Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GOODBYE, server_header=False
    )
    try:
        Server(config, state.engine).run(sockets=[bound])
    except KeyboardInterrupt:  # uvicorn has ended cleanly, and raises the signal again
        tell("ended")
    finally:
        bound.close()
