"""A user that a root agent's kernels run as.

bubblewrap maps the kernel's user to the agent's. That is harmless for an ordinary agent, but an agent that is root would
make every stranger root to the files of the machine that they can see: `/proc/sys` (`core_pattern` runs programs as root)
and the nodes in `/dev` (whose permissions they could take from everybody). So a root agent makes a user namespace with
two users: its own, by whose rights bubblewrap builds the view, and a number that nobody on the machine has, into which
`setpriv` changes before Python starts. An ordinary agent cannot map a second user, and does not need to.

Rejected: read-only device nodes (bubblewrap's read-only mounts are `nodev`), and starting bubblewrap as another user
(which could not read a Python environment below `/root`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

HOST_ID = 1_999_000_000
"""The user and group number on the machine: above those that systemd, containers and directories give out."""

RIGHTS = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""What `setpriv` needs to become somebody else and to give everything up."""


def needed() -> bool:
    """Whether the agent is root."""
    return os.geteuid() == 0


def missing_programs() -> list[str]:
    """Programs of util-linux that a root agent needs and does not find."""
    return [name for name in ("unshare", "setpriv") if shutil.which(name) is None]


def make_namespace(user_id: int) -> int:
    """Make the user namespace, in which root is 0 and `HOST_ID` is `user_id`; return a descriptor of it. Raises OSError.

    It takes a few milliseconds and is done once in an agent's life.
    """
    with ExitStack() as stack:
        helper = stack.enter_context(
            subprocess.Popen(
                ["unshare", "--user", "--", "sh", "-c", "echo; read -r _"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(helper.kill)
        assert helper.stdout is not None
        if not helper.stdout.readline():
            raise PermissionError("user namespaces are not permitted")
        place = Path(f"/proc/{helper.pid}")
        for name in ("uid_map", "gid_map"):
            (place / name).write_text(f"0 0 1\n{user_id} {HOST_ID} 1\n")
        return os.open(place / "ns/user", os.O_RDONLY | os.O_CLOEXEC)


def becoming(user_id: int) -> list[str]:
    """The words before a program that start it as `user_id`, with no right left."""
    return [
        "setpriv",
        f"--reuid={user_id}",
        f"--regid={user_id}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
    ]
