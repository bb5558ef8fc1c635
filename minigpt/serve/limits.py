"""Set limits: what one client may ask for, and what all clients together may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is an upper limit."""

    texts: int = 256
    """Texts that a model writes at once; fewer if memory is small."""
    queue: int = 512
    """Texts that wait for their turn. One request can ask for this many."""
    tokens: int = 4096
    """New tokens of one text."""
    seconds: float = 300.0
    """Seconds from a request to the end of its answer."""
    body: int = 4 << 20
    """Bytes of a request's body."""
    memory: int | None = None
    """Bytes of all models together (None: half of the free memory)."""
    prefixes: int = 256 << 20
    """Bytes of the keys and values of earlier chats, for each model."""
