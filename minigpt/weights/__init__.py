"""Read and write weights on disk: checkpoints (whole or sharded), packed integers, other programs' formats."""
