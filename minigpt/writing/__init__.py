"""Text in, text out."""

from minigpt.writing.text import generate_text, stream_text

__all__ = ["generate_text", "stream_text"]
