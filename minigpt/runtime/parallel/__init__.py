"""Several processes that train one model, by torch's own engine: DDP, FSDP2, torchrun."""
