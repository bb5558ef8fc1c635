"""The weights on disk: checkpoints, sharded ones, damaged ones, packed integers, Hugging Face names."""
