"""Choose where and how a model runs: device, precision, memory, the fastest kernels, several processes."""
