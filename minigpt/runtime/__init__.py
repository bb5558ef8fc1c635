"""Where the work runs: device, precision, memory, kernels chosen by timing, ranks."""
