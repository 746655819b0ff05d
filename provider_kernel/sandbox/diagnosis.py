"""Why bubblewrap does not work on a machine, and the one thing that its owner should do about it.

Pure functions of what was observed, so that every case can be tested without a machine that has it.
"""

from __future__ import annotations

import re
from pathlib import Path

from jupyter_depin.errors import SandboxMissing

OLDEST = (0, 8)
"""The first bubblewrap with `--size` and `--disable-userns`."""

INSTALL = (
    "Install it: `sudo apt install bubblewrap` (Debian, Ubuntu), `sudo dnf install bubblewrap` (Fedora)."
)

PROFILE = """\
sudo tee /etc/apparmor.d/bwrap >/dev/null <<'END'
abi <abi/4.0>,
include <tunables/global>
profile bwrap {program} flags=(unconfined) {{
  userns,
}}
END
sudo systemctl reload apparmor"""

SYSCTLS = {
    "apparmor": Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    "clone": Path("/proc/sys/kernel/unprivileged_userns_clone"),
    "namespaces": Path("/proc/sys/user/max_user_namespaces"),
}


def not_linux(platform: str) -> SandboxMissing:
    """It is a Linux program."""
    fix = "Lend from Linux (on Windows: from inside WSL 2), or only to people whom you name."
    return SandboxMissing(reason=f"it exists for Linux only, and this is {platform}", fix=fix)


def not_installed() -> SandboxMissing:
    """There is no `bwrap` on the search path."""
    return SandboxMissing(reason="it is not installed", fix=INSTALL)


def no_filter(machine: str) -> SandboxMissing:
    """There is no filter of system calls for this processor."""
    fix = "Lend from an x86-64 or 64-bit ARM machine, or only to people whom you name."
    return SandboxMissing(reason=f"there is no filter of system calls for {machine}", fix=fix)


def no_util_linux(programs: list[str]) -> SandboxMissing:
    """A root agent finds no `unshare` or `setpriv`."""
    fix = "Run the provider as an ordinary user, or install util-linux."
    return SandboxMissing(reason=f"as root it also needs {' and '.join(programs)}", fix=fix)


def private_environment(folder: str) -> SandboxMissing:
    """The Python environment contains the owner's home folder."""
    fix = "Install jupyter-depin in a virtual environment of its own: `python3 -m venv ~/depin`."
    return SandboxMissing(reason=f"its Python environment {folder} would show your home folder", fix=fix)


def version(text: str) -> tuple[int, ...]:
    """`bubblewrap 0.8.0` → (0, 8, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def too_old(found: tuple[int, ...]) -> SandboxMissing:
    """Older than `OLDEST`."""
    number = ".".join(map(str, found)) or "of unknown version"
    fix = "Upgrade it to 0.8 or newer: Debian 12, Ubuntu 24.04 and Fedora 38 have one."
    return SandboxMissing(reason=f"it is {number}, older than 0.8", fix=fix)


def read_sysctls() -> dict[str, str]:
    """The settings that decide on user namespaces, as far as this kernel has them."""
    found = {}
    for name, path in SYSCTLS.items():
        try:
            found[name] = path.read_text().strip()
        except OSError:
            continue
    return found


def failed_trial(message: str, program: str, sysctls: dict[str, str]) -> SandboxMissing:
    """A trial run failed with `message` on standard error."""
    reason = next(
        (line.strip() for line in reversed(message.splitlines()) if line.strip()), "it ended without a word"
    )
    blocked = re.search(
        r"uid map|namespace|NEWUSER|loopback|Operation not permitted|Permission denied", message
    )
    if blocked and sysctls.get("apparmor") == "1":
        fix = "AppArmor blocks it; allow it once with this profile:\n" + PROFILE.format(program=program)
    elif blocked and sysctls.get("clone") == "0":
        fix = "User namespaces are switched off; run `sudo sysctl -w kernel.unprivileged_userns_clone=1`."
    elif blocked and sysctls.get("namespaces") == "0":
        fix = "User namespaces are switched off; run `sudo sysctl -w user.max_user_namespaces=15000`."
    elif blocked:
        fix = "If this is a container, allow user namespaces in it, or run the provider outside of it."
    else:
        fix = "Run `bwrap --ro-bind / / --unshare-all true` to see it fail, and report it to jupyter-depin."
    return SandboxMissing(reason=reason, fix=fix)
