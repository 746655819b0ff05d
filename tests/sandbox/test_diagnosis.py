"""Each way in which bubblewrap can fail on a machine has its own fix."""

from __future__ import annotations

import pytest

from provider_kernel.sandbox import diagnosis

UBUNTU = "bwrap: setting up uid map: Permission denied\n"
NO_NAMESPACES = (
    "bwrap: No permissions to create new namespace, likely because the kernel does not allow it.\n"
)


@pytest.mark.parametrize(
    ("message", "sysctls", "fix"),
    [
        (
            UBUNTU,
            {"apparmor": "1", "namespaces": "100"},
            "profile bwrap /usr/bin/bwrap flags=(unconfined) {\n  userns,\n}",
        ),
        (NO_NAMESPACES, {"clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (NO_NAMESPACES, {"namespaces": "0"}, "sysctl -w user.max_user_namespaces"),
        (NO_NAMESPACES, {"namespaces": "100"}, "container"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", {}, "container"),
        ("bwrap: Unknown option --size", {"apparmor": "1"}, "report it"),
        ("", {}, "report it"),
    ],
)
def test_a_failed_trial_is_told_with_its_fix(message, sysctls, fix):
    missing = diagnosis.failed_trial(message, "/usr/bin/bwrap", sysctls)
    assert fix in str(missing)
    assert (message.strip() or "without a word") in str(missing)


def test_versions_are_compared_as_numbers():
    assert (
        diagnosis.version("bubblewrap 0.11.0\n") >= diagnosis.OLDEST > diagnosis.version("bubblewrap 0.6.1\n")
    )
    assert diagnosis.version("6.18.44-generic-x86_64") == (6, 18, 44)


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        (diagnosis.not_linux("Darwin"), "Darwin"),
        (diagnosis.not_installed(), "apt install bubblewrap"),
        (diagnosis.no_filter("riscv64"), "riscv64"),
        (diagnosis.too_old((0, 6)), "0.6"),
        (diagnosis.private_environment("/home/ada"), "/home/ada"),
        (diagnosis.no_util_linux(["unshare", "setpriv"]), "unshare and setpriv"),
    ],
)
def test_every_reason_names_what_was_found(missing, word):
    assert word in str(missing)
