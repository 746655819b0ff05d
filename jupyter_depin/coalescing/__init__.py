"""Makes fewer and shorter messages of a kernel's output without changing what a notebook shows in the end.

Only the provider does this, before the tunnel, which stays blind to content; and only while a slow link is behind.
"""
