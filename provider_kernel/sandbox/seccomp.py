"""A filter of system calls for sandboxed kernels, built as BPF in plain Python.

What it refuses: other ways into the machine's kernel than a notebook needs (module loading, bpf, io_uring, userfaultfd,
perf, keyrings), reading other processes, new namespaces and mounts, socket families other than Unix, IPv4, IPv6 and
netlink, typing into a terminal. A call that is refused fails with EPERM, so that programs can go on without it.

Rejected: an allow-list compiled with libseccomp (two more things to install; measured, it alone let AF_VSOCK, keyctl and
ptrace through), KILL for every refusal (libraries probe for calls and go on without them).

Numbers: Linux `unistd` tables of x86-64 and of the generic table that arm64 uses.
"""

from __future__ import annotations

import errno
import platform
import struct

LOAD_WORD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; of an argument, the low 32 bits, which is all that these calls read."""

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# name: (x86-64, arm64)
REFUSED: dict[str, tuple[int, int]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # large and rarely needed parts of the machine's kernel
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "nfsservctl": (180, 42),
    # memory placement, by which one renter slows another
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
}
REFUSED_X86_64 = {
    "modify_ldt": 154,
    "iopl": 172,
    "ioperm": 173,
    "uselib": 134,
    "_sysctl": 156,
    "create_module": 174,
    "get_kernel_syms": 177,
    "query_module": 178,
    "ustat": 136,
    "sysfs": 139,
}
# name: number by machine
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKET = {"x86_64": 41, "aarch64": 198}
IOCTL = {"x86_64": 16, "aarch64": 29}
CLONE3 = 435

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET. (CLONE_NEWTIME works with clone3 and unshare only.)"""

FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (the list of interfaces); never AF_VSOCK, AF_ALG, AF_PACKET, AF_XDP."""

TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX type into a terminal as if its user did."""


def supported(machine: str | None = None) -> bool:
    """Whether there is a filter for this kind of processor (`platform.machine()`)."""
    return (machine or platform.machine()) in AUDIT_ARCH


def build_filter(machine: str | None = None) -> bytes:
    """The filter as `struct sock_filter[]`, for `bwrap --seccomp`. Raises KeyError if not `supported`."""
    machine = machine or platform.machine()
    refused = {numbers[0 if machine == "x86_64" else 1] for numbers in REFUSED.values()}
    # A 32-bit program's calls have other numbers: none of them is let through.
    program = [
        _instruction(LOAD_WORD, ARCHITECTURE),
        _instruction(JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD_WORD, NUMBER),
    ]
    if machine == "x86_64":
        refused |= set(REFUSED_X86_64.values())
        program += [_instruction(JUMP_AT_LEAST, X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    for number in sorted(refused):
        program += [_instruction(JUMP_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    # Its flags lie in memory, out of a filter's sight; without it glibc takes clone.
    program += [_instruction(JUMP_EQUAL, CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    program += _when(
        CLONE[machine],
        [
            _instruction(LOAD_WORD, FIRST_ARGUMENT),
            _instruction(JUMP_ANY_BIT, NAMESPACE_FLAGS, 0, 1),
            _refuse(errno.EPERM),
        ],
    )
    program += _when(
        SOCKET[machine],
        [
            _instruction(LOAD_WORD, FIRST_ARGUMENT),
            *(_instruction(JUMP_EQUAL, family, len(FAMILIES) - at, 0) for at, family in enumerate(FAMILIES)),
            _refuse(errno.EAFNOSUPPORT),
        ],
    )
    program += _when(
        IOCTL[machine],
        [
            _instruction(LOAD_WORD, SECOND_ARGUMENT),
            _instruction(JUMP_EQUAL, TERMINAL_INPUT[0], 1, 0),
            _instruction(JUMP_EQUAL, TERMINAL_INPUT[1], 0, 1),
            _refuse(errno.EPERM),
        ],
    )
    return b"".join([*program, _instruction(RETURN, ALLOW)])


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """`body` for one call; what runs past its end is allowed."""
    return [_instruction(JUMP_EQUAL, number, 0, len(body) + 1), *body, _instruction(RETURN, ALLOW)]


def _refuse(number: int) -> bytes:
    return _instruction(RETURN, ERRNO | number)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
