"""What one client may ask for, and what all together may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is an upper limit."""

    texts: int = 256
    """Texts that a model writes at once; fewer where memory is small."""
    queue: int = 512
    """Texts that wait for their turn. One request can ask for that many."""
    tokens: int = 4096
    """New tokens of one text."""
    seconds: float = 300.0
    """From a request to the end of its answer."""
    body: int = 4 << 20
    """Bytes of a request."""
    memory: int | None = None
    """Bytes of all models together (None: half of what is free)."""
    prefixes: int = 256 << 20
    """Bytes of the keys and values that each model keeps of earlier chats."""
