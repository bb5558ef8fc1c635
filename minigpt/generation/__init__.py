"""Generate token ids from token ids: first prefill the prompt, then decode one token at a time."""

from minigpt.generation.engine import Step, generate, steps, window_start

__all__ = ["Step", "generate", "steps", "window_start"]
