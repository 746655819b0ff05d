"""The five kernel channels as ZeroMQ sockets: the side that Jupyter clients see, and the side that the kernel sees.

Messages pass as they are: these rooms read no content but one word (`iopub_welcome`, which each side says for itself).
A client's ZeroMQ identity is kept, and goes in front of each of its messages.
"""

from jupyter_depin.channels.client_side import ClientSide
from jupyter_depin.channels.kernel_side import KernelSide

__all__ = ["ClientSide", "KernelSide"]
