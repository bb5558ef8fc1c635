"""The model: GPT, its parts, its cache, and what it costs."""

from minigpt.model.cache import KVCache
from minigpt.model.gpt import GPT

__all__ = ["GPT", "KVCache"]
