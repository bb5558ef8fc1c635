"""A model made ready for fast generation: converted weights, CUDA graphs, kernels in C."""
