"""Generation: logits -> token (pure), the prefill/decode engine on ids, and text in and out."""

from minigpt.generation.engine import generate, window_start
from minigpt.generation.sampling import probabilities, sample
from minigpt.generation.text import generate_text, stream_text

__all__ = ["generate", "generate_text", "probabilities", "sample", "stream_text", "window_start"]
