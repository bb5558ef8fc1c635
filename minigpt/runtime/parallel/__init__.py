"""Several processes that train one model, by torch's own engine: DDP, FSDP2, torchrun."""

from minigpt.runtime.parallel.group import Processes, join
from minigpt.runtime.parallel.wrap import Replicated, is_sharded, recompute_blocks, shard

__all__ = ["Processes", "Replicated", "is_sharded", "join", "recompute_blocks", "shard"]
