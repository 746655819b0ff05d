"""Which channels are lanes of the tunnel, and how both sides of the channels talk with whoever made them."""

from __future__ import annotations

from collections.abc import Callable

from jupyter_depin.protocol.frames import Lane, Part

LANES = {"shell": Lane.SHELL, "stdin": Lane.STDIN, "control": Lane.CONTROL}
"""Those on which clients speak too."""

Handler = Callable[[Lane, list[Part]], None]
Hold = Callable[[Lane, bool, str], None]
"""Asks that nothing more of a lane be delivered, or takes that back; the word says for whose sake."""
TooBig = Callable[[Lane, int, int], None]
"""Hears of a message that was left out because it is more than a tunnel carries: its bytes and its parts."""
