"""Fine-tune a trained model: all its weights, or a small adapter added to it (LoRA)."""

from minigpt.training.finetune.adapters import (
    Adapters,
    SavedAdapter,
    find_adapters,
    fingerprint,
    load_saved,
    save_adapter,
    to_peft,
)
from minigpt.training.finetune.lora import LoRALinear, adapter, add_lora, load_adapter, merge, remove, unmerge

__all__ = [
    "Adapters",
    "LoRALinear",
    "SavedAdapter",
    "adapter",
    "add_lora",
    "find_adapters",
    "fingerprint",
    "load_adapter",
    "load_saved",
    "merge",
    "remove",
    "save_adapter",
    "to_peft",
    "unmerge",
]
