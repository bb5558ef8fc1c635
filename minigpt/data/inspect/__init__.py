"""Look at a text before training on it: sizes, histograms, duplicates, leaks between splits."""
