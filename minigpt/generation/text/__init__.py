"""Text in, text out."""

from minigpt.generation.text.generate import Completion, TokenScore, Writing, complete, generate_text, stream_text

__all__ = ["Completion", "TokenScore", "Writing", "complete", "generate_text", "stream_text"]
