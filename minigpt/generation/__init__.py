"""Generation: the prefill/decode engine on ids."""

from minigpt.generation.engine import Step, generate, steps, window_start

__all__ = ["Step", "generate", "steps", "window_start"]
