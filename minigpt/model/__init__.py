"""Define the GPT model, its parts, its key/value cache, and its cost in parameters and FLOPs."""

from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT

__all__ = ["GPT", "KVCache"]
