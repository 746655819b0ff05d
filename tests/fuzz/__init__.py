"""Random, mutated and lying frames for every door where a peer's bytes come in: `python -m tests.fuzz`."""
