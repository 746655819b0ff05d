"""Benchmarks: `python -m tests.bench`. Each figure stands beside that of a peer measured in the same run."""
