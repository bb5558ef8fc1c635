"""Train one model with several processes, with torch's own tools: DDP, FSDP2, torchrun."""
