"""Make a model generate fast: with converted weights, CUDA graphs and kernels in C."""
