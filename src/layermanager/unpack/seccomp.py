"""The system calls that a worker needs; all others do not exist for it.

A filter in classic BPF, as seccomp(2) takes it: it lets pass what is in the table and answers
``ENOSYS`` to the rest, as a kernel would that does not have the call, so that a C library which
would like to use a newer call falls back. That leaves an attacker who took over the worker nothing
to talk to the kernel with but files below its root.

The filter sees the lower halves of arguments only where the kernel, too, looks at no more.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from typing import Final, NamedTuple

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_BITS_SET: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_NO_SUCH_CALL: Final = 0x00050000 | errno.ENOSYS
_KILL_PROCESS: Final = 0x80000000

# Offsets in struct seccomp_data. Both architectures are little-endian.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16  # eight bytes each

_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW_NAMESPACES: Final = 0x7E020000
_MAP_SHARED: Final = 0x01
# As in asm-generic, which both architectures follow.
_TCGETS: Final = 0x5401
_FIONCLEX: Final = 0x5450
_FIOCLEX: Final = 0x5451
_F_GETFD: Final = 1
_F_SETFD: Final = 2
_F_GETFL: Final = 3
_F_DUPFD_CLOEXEC: Final = 1030


class _Numbers(NamedTuple):
    """The number of a system call on each architecture."""

    x86_64: int
    aarch64: int


# The most frequent ones first: the filter compares one after the other.
_SYSTEM_CALLS: Final = {
    "write": _Numbers(1, 64),
    "openat": _Numbers(257, 56),
    "close": _Numbers(3, 57),
    "utimensat": _Numbers(280, 88),
    "futex": _Numbers(202, 98),
    "fchown": _Numbers(93, 55),
    "mkdirat": _Numbers(258, 34),
    "read": _Numbers(0, 63),
    "fchmod": _Numbers(91, 52),
    "fchmodat": _Numbers(268, 53),
    "fchownat": _Numbers(260, 54),
    "symlinkat": _Numbers(266, 36),
    "linkat": _Numbers(265, 37),
    "unlinkat": _Numbers(263, 35),
    "readlinkat": _Numbers(267, 78),
    "mknodat": _Numbers(259, 33),
    "fsetxattr": _Numbers(190, 7),
    "lsetxattr": _Numbers(189, 6),
    "fgetxattr": _Numbers(193, 10),
    "lgetxattr": _Numbers(192, 9),
    "fremovexattr": _Numbers(199, 16),
    "fchdir": _Numbers(81, 50),
    "lseek": _Numbers(8, 62),
    "ftruncate": _Numbers(77, 46),
    "fstat": _Numbers(5, 80),
    "newfstatat": _Numbers(262, 79),
    "getdents64": _Numbers(217, 61),
    "fcntl": _Numbers(72, 25),
    "ioctl": _Numbers(16, 29),
    "sendmsg": _Numbers(46, 211),
    "recvmsg": _Numbers(47, 212),
    "mmap": _Numbers(9, 222),
    "munmap": _Numbers(11, 215),
    "mremap": _Numbers(25, 216),
    "mprotect": _Numbers(10, 226),
    "madvise": _Numbers(28, 233),
    "brk": _Numbers(12, 214),
    "clone": _Numbers(56, 220),
    "set_robust_list": _Numbers(273, 99),
    "rseq": _Numbers(334, 293),
    "gettid": _Numbers(186, 178),
    "getpid": _Numbers(39, 172),
    "umask": _Numbers(95, 166),
    "capget": _Numbers(125, 90),
    "geteuid": _Numbers(107, 175),
    "getegid": _Numbers(108, 177),
    "clock_gettime": _Numbers(228, 113),
    "clock_nanosleep": _Numbers(230, 115),
    "sched_yield": _Numbers(24, 124),
    "getrandom": _Numbers(318, 278),
    "rt_sigprocmask": _Numbers(14, 135),
    "rt_sigaction": _Numbers(13, 134),
    "rt_sigreturn": _Numbers(15, 139),
    "restart_syscall": _Numbers(219, 128),
    "exit": _Numbers(60, 93),
    "exit_group": _Numbers(231, 94),
}
_AUDIT_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def filter_program(machine: str = platform.machine(), highest: int = sys.maxsize) -> bytes:
    """The filter for a process whose kernel calls itself *machine*, as uname(2) says.

    Args:
        machine: where the process runs.
        highest: the greatest size there, which tells 32 bits from 64: a kernel of 64 bits runs
            programs of 32, and knows them by other numbers.

    Raises:
        OSError: there is none for its architecture.
    """
    if highest < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for 32 bits on {machine}")
    if machine not in _AUDIT_ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    return program_for(machine)


def program_for(machine: str) -> bytes:
    """The filter for 64-bit processes on *machine*."""
    instructions = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_IF_EQUAL, _AUDIT_ARCHITECTURES[machine], if_true=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    for name, numbers in _SYSTEM_CALLS.items():
        verdict = _CONDITIONS.get(name, [_instruction(_RETURN, _ALLOW)])
        number = getattr(numbers, machine)
        instructions += [_instruction(_JUMP_IF_EQUAL, number, if_false=len(verdict)), *verdict]
    instructions.append(_instruction(_RETURN, _NO_SUCH_CALL))
    return b"".join(instructions)


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _if_one_of(argument: int, *values: int) -> list[bytes]:
    """Allow the call if its *argument* is one of *values*."""
    return [
        _instruction(_LOAD, _ARGUMENTS + 8 * argument),
        *(
            _instruction(_JUMP_IF_EQUAL, value, if_true=len(values) - index)
            for index, value in enumerate(values)
        ),
        _instruction(_RETURN, _NO_SUCH_CALL),
        _instruction(_RETURN, _ALLOW),
    ]


def _unless_bits(argument: int, bits: int) -> list[bytes]:
    """Allow the call if its *argument* has none of *bits*."""
    return [
        _instruction(_LOAD, _ARGUMENTS + 8 * argument),
        _instruction(_JUMP_IF_BITS_SET, bits, if_false=1),
        _instruction(_RETURN, _NO_SUCH_CALL),
        _instruction(_RETURN, _ALLOW),
    ]


_CONDITIONS: Final = {
    # Threads, but no processes. The arguments of clone3 cannot be looked at from here; without
    # it the C library uses clone.
    "clone": [
        _instruction(_LOAD, _ARGUMENTS),
        _instruction(_JUMP_IF_BITS_SET, _CLONE_NEW_NAMESPACES, if_true=1),
        _instruction(_JUMP_IF_BITS_SET, _CLONE_THREAD, if_true=1),
        _instruction(_RETURN, _NO_SUCH_CALL),
        _instruction(_RETURN, _ALLOW),
    ],
    # No typing into the terminal on which the manager was started.
    "ioctl": _if_one_of(1, _TCGETS, _FIOCLEX, _FIONCLEX),
    # No signals to whoever is named as the owner of a descriptor.
    "fcntl": _if_one_of(1, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC),
    # No memory that the limit of a process's data does not count.
    "mmap": _unless_bits(3, _MAP_SHARED),
}
