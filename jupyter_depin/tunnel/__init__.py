"""The tunnel: a resumable, content-blind carrier of lanes. Synchronous; the clock is an argument."""
