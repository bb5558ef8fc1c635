"""Models in the formats of others."""

from minigpt.export.gguf import export_gguf
from minigpt.export.huggingface import export_huggingface

__all__ = ["export_gguf", "export_huggingface"]
