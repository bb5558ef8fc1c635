"""Text in, text out."""

from minigpt.generation.text.generate import Completion, Writing, complete, generate_text, stream_text

__all__ = ["Completion", "Writing", "complete", "generate_text", "stream_text"]
