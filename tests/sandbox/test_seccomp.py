"""The filter of system calls, run as the machine's kernel runs it; so both processors are tested on either."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider_kernel.sandbox import seccomp

OTHER_NUMBERS = {
    "x86_64": {"read": 0, "openat": 257, "getpid": 39},
    "aarch64": {"read": 63, "openat": 56, "getpid": 172},
}
MACHINES = sorted(seccomp.AUDIT_ARCH)


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Run the filter on one call: 0 for allowed, an errno, or -1 for killed."""
    if architecture is None:
        architecture = seccomp.AUDIT_ARCH[machine]
    arguments = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", seccomp.build_filter(machine)))
    at, word = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == seccomp.LOAD_WORD:
            (word,) = struct.unpack_from("=I", data, operand)
        elif code == seccomp.RETURN:
            if operand == seccomp.ALLOW:
                return 0
            return -1 if operand == seccomp.KILL_PROCESS else operand & 0xFFFF
        else:
            true = {
                seccomp.JUMP_EQUAL: word == operand,
                seccomp.JUMP_AT_LEAST: word >= operand,
                seccomp.JUMP_ANY_BIT: bool(word & operand),
            }[code]
            at += if_true if true else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_named_call_is_refused(machine):
    column = 0 if machine == "x86_64" else 1
    assert {
        name: verdict(machine, numbers[column]) for name, numbers in seccomp.REFUSED.items()
    } == dict.fromkeys(seccomp.REFUSED, errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_ordinary_calls_are_allowed(machine):
    assert [verdict(machine, number) for number in OTHER_NUMBERS[machine].values()] == [0, 0, 0]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_thread_may_be_made_but_no_namespace(machine):
    pthread = 0x3D0F00
    assert verdict(machine, seccomp.CLONE[machine], pthread) == 0
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, seccomp.CLONE[machine], pthread | flag) == errno.EPERM
    assert verdict(machine, seccomp.CLONE3) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@given(family=st.integers(0, 2**32 - 1), high=st.integers(0, 2**32 - 1))
def test_only_four_socket_families_are_allowed(machine, family, high):
    expected = 0 if family in seccomp.FAMILIES else errno.EAFNOSUPPORT
    # The kernel reads an int; what stands above it in the register must not matter.
    assert verdict(machine, seccomp.SOCKET[machine], family | high << 32) == expected
    for allowed in seccomp.FAMILIES:
        assert verdict(machine, seccomp.SOCKET[machine], allowed | high << 32) == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_a_terminal_may_be_asked_but_not_typed_into(machine):
    assert verdict(machine, seccomp.IOCTL[machine], 1, 0x5413) == 0
    for request in seccomp.TERMINAL_INPUT:
        assert verdict(machine, seccomp.IOCTL[machine], 1, request) == errno.EPERM
        assert verdict(machine, seccomp.IOCTL[machine], 1, request | 1 << 32) == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architectures_calls_end_the_process(machine):
    i386 = 0x40000003
    assert verdict(machine, 20, architecture=i386) == -1


def test_the_x32_calls_are_refused():
    assert verdict("x86_64", seccomp.X32_BIT | 39) == errno.ENOSYS


def test_this_machine_is_told_from_one_without_a_filter():
    assert seccomp.supported() == (os.uname().machine in MACHINES)
    assert not seccomp.supported("riscv64")
