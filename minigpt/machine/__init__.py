"""This machine: what it can do (doctor) and how fast it is (bench)."""
