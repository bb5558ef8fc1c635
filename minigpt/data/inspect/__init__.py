"""Examine a text before training on it: sizes, histograms, duplicates, overlap between splits."""
