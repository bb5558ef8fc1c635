"""Models in the formats of others."""

from minigpt.export.huggingface import export_huggingface

__all__ = ["export_huggingface"]
