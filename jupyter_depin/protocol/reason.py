"""Why a rental ended, in words that stay the same on the wire, in journals and in the browser.

It stands in the vocabulary because the meter and the lifecycle, which may not import each other, both name reasons.
"""

from __future__ import annotations

from enum import StrEnum


class EndReason(StrEnum):
    """The first cause of the end. The values are stable: a new version may add some but never renames one."""

    STOPPED_BY_USER = "stopped_by_user"
    """The person, or the program that rents for her, stopped it."""
    KERNEL_SHUTDOWN = "kernel_shutdown"
    """The kernel itself ended: a shutdown request, `exit()`, or a crash."""
    PROVIDER_STOPPED = "provider_stopped"
    """The owner of the machine stopped it."""
    ARREARS = "arrears"
    """It stayed paused without pay for the whole grace."""
    CAP_REACHED = "cap_reached"
    """The deposit is used up."""
    LEASE_OVER = "lease_over"
    """The agreed length is over."""
    UNREACHABLE = "unreachable"
    """The link stayed down for the whole grace."""
    START_FAILED = "start_failed"
    """The kernel never became ready."""
    PROVIDER_LOST_KERNEL = "provider_lost_kernel"
    """The provider's machine restarted, and the kernel with it."""


SENTENCES: dict[EndReason, str] = {
    EndReason.STOPPED_BY_USER: "you stopped it",
    EndReason.KERNEL_SHUTDOWN: "the kernel was shut down",
    EndReason.PROVIDER_STOPPED: "the provider stopped it",
    EndReason.ARREARS: "it stayed unpaid for too long",
    EndReason.CAP_REACHED: "your limit for this rental is used up",
    EndReason.LEASE_OVER: "the agreed time is over",
    EndReason.UNREACHABLE: "the provider could not be reached any more",
    EndReason.START_FAILED: "the kernel could not be started",
    EndReason.PROVIDER_LOST_KERNEL: "the provider's machine restarted and lost the kernel",
}
"""What a user reads after "the rental has ended:", where no front end writes it in the user's language."""
