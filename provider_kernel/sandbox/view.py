"""What a kernel sees of the machine: bubblewrap's arguments for its files and its environment.

Read-only `/usr` and the Python environment, an `/etc` of public and made-up files, and memory file systems with a size
for everything that can be written. Not shown: home folders, `/etc` itself, `/run`, `/var`, `/sys`, devices.

bubblewrap's own `/dev` is a writable memory file system without a size, so it is made read-only after `/dev/shm` is laid
over it. So is `/proc`, in which nothing needs writing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from provider_kernel.sandbox import Limits

HOME = "/home/renter"
USER_ID = 1000

SHOWN_OF_ETC = (
    "/etc/alternatives",
    "/etc/ca-certificates.conf",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
)
MADE_UP = {
    "/etc/passwd": f"root:x:0:0::/:/usr/sbin/nologin\nrenter:x:{USER_ID}:{USER_ID}::{HOME}:/bin/bash\n",
    "/etc/group": f"root:x:0:\nrenter:x:{USER_ID}:\n",
    "/etc/hosts": "127.0.0.1 localhost kernel\n::1 localhost kernel\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
ENVIRONMENT = {
    "HOME": HOME,
    "USER": "renter",
    "LOGNAME": "renter",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "xterm-color",
    "MPLCONFIGDIR": f"{HOME}/.cache/matplotlib",
    "PYTHONDONTWRITEBYTECODE": "1",
    # What it is inside. ipykernel then neither watches its parent nor explains itself to a terminal.
    "JPY_PARENT_PID": "1",
}


class PrivateEnvironment(ValueError):
    """The Python environment holds the owner's home folder, so it cannot be shown to strangers."""


def python_prefixes() -> list[str]:
    """The folders of the agent's Python that a kernel needs, outermost first. Raises `PrivateEnvironment`.

    A virtual environment and the Python it was made from, by the names that it knows and by the real ones.
    """
    found = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    found |= {prefix.resolve() for prefix in found}
    home = Path.home().resolve()
    for prefix in found:
        if home.is_relative_to(prefix) and prefix != Path("/usr"):
            raise PrivateEnvironment(str(prefix))
    roots: list[Path] = []
    for prefix in sorted(found, key=lambda path: len(path.parts)):
        if not any(prefix.is_relative_to(root) for root in [Path("/usr"), *roots]):
            roots.append(prefix)
    return [str(root) for root in roots]


def shown() -> list[str]:
    """The machine's folders that a kernel sees with all that is in them. Raises `PrivateEnvironment`."""
    return ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *python_prefixes(), *SHOWN_OF_ETC]


def python_links(prefixes: list[str]) -> list[tuple[str, str]]:
    """The links from `sys.executable` to the real program that lie outside of `prefixes`, as (link, target)."""
    links = []
    at = Path(sys.executable)
    for _ in range(40):  # as many as the kernel follows
        if not at.is_symlink():
            break
        target = os.readlink(at)
        if not any(at.is_relative_to(root) for root in ("/usr", *prefixes)):
            links.append((str(at), target))
        at = Path(os.path.normpath(at.parent / target))
    return links


def arguments(
    limits: Limits, *, files: dict[str, bytes], environment: dict[str, str], hand_over: Callable[[bytes], int]
) -> list[str]:
    """The arguments for everything that a kernel sees.

    `files` are shown besides those of `MADE_UP`; `hand_over` turns bytes into a descriptor that bubblewrap inherits.
    """
    prefixes = python_prefixes()
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += _memory_folder("/dev/shm", limits.shm, "1777")
    words += _memory_folder("/tmp", limits.tmp, "1777")
    words += _way_to([HOME])
    # Open to all, for a root agent's bubblewrap makes it as another user than the one who lives there.
    words += _memory_folder(HOME, limits.home, "0777")
    # After the memory folders, for an environment may lie under /tmp or /home.
    made = {path: text.encode() for path, text in MADE_UP.items()} | files
    links = python_links(prefixes)
    words += _way_to([*SHOWN_OF_ETC, *prefixes, *(link for link, _ in links), *made])
    for path in SHOWN_OF_ETC:
        words += ["--ro-bind-try", path, path]
    for prefix in prefixes:
        words += ["--ro-bind", prefix, prefix]
    for link, target in links:
        words += ["--symlink", target, link]
    for path, content in made.items():
        words += ["--perms", "0444", "--ro-bind-data", str(hand_over(content)), path]
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    for name, value in {**ENVIRONMENT, "PATH": path, **environment}.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", HOME, "--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/"]


def _memory_folder(path: str, size: int, permissions: str) -> list[str]:
    sized = ["--size", str(size)] if size else []
    return [*sized, "--perms", permissions, "--tmpfs", path]


def _way_to(paths: list[str]) -> list[str]:
    """Make the folders above `paths`; bubblewrap by itself makes them for its own user alone."""
    above = {str(folder) for path in paths for folder in Path(path).parents} - {"/", "/tmp"}
    return [word for folder in sorted(above) for word in ("--perms", "0755", "--dir", folder)]
