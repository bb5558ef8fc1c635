"""Examine this machine: what works on it (doctor) and how fast it is (bench)."""
