"""Text in, text out."""

from minigpt.writing.text import Completion, TokenScore, Writing, complete, generate_text, stream_text

__all__ = ["Completion", "TokenScore", "Writing", "complete", "generate_text", "stream_text"]
