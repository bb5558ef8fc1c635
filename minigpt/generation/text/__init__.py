"""Generate text from prompts: encode them, run the engine, decode, and apply stop texts, bias and bans."""

from minigpt.generation.text.generate import Completion, Writing, complete, generate_text, stream_text

__all__ = ["Completion", "Writing", "complete", "generate_text", "stream_text"]
