"""Write models in the formats of other tools."""

from minigpt.export.gguf import export_gguf
from minigpt.export.huggingface import export_huggingface
from minigpt.export.onnx_directory import export_onnx
from minigpt.export.page import export_page
from minigpt.export.peft import export_peft

__all__ = ["export_gguf", "export_huggingface", "export_onnx", "export_page", "export_peft"]
