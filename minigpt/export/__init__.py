"""Models in the formats of others."""

from minigpt.export.huggingface import Exported, export_huggingface

__all__ = ["Exported", "export_huggingface"]
