"""The lending side: an agent that rents out this machine's kernels. Imports nothing: it must stay light."""
