"""Several processes that train one model, by torch's own engine: DDP, FSDP2, torchrun."""

from minigpt.runtime.parallel.group import join

__all__ = ["join"]
