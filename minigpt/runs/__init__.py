"""Runs: plan, train, fine-tune, load, compare, sweep and repeat them. The place where all parts meet."""
