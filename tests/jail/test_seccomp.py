"""The filter of system calls: its table against the kernel's headers, its program, its effect."""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import re
import signal
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prison import behind, in_child, outcome, system_call_filter

from layermanager import linux
from layermanager.unpack import seccomp

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADERS: Final = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# asm-generic/unistd.h gives these by the names that they have on machines of 32 and of 64 bits.
_GENERIC_NAMES: Final = {
    "fcntl": "__NR3264_fcntl",
    "fstat": "__NR3264_fstat",
    "newfstatat": "__NR3264_fstatat",
    "ftruncate": "__NR3264_ftruncate",
    "lseek": "__NR3264_lseek",
    "mmap": "__NR3264_mmap",
}
_MACHINES: Final = tuple(_HEADERS)
_PROGRAMS: Final = {
    machine: list(struct.iter_unpack("=HBBI", seccomp.program_for(machine)))
    for machine in _MACHINES
}
_ALLOWED: Final = 0x7FFF0000
_REFUSED: Final = 0x00050000 | errno.ENOSYS
_KILLED: Final = 0x80000000
_X32: Final = 0x40000000
_numbers = st.integers(0, 2**32 - 1) | st.integers(0, 600)
_machines = st.sampled_from(_MACHINES)


def _numbers_of_kernel(machine: str) -> dict[str, int]:
    header = _HEADERS[machine]
    try:
        text = header.read_text(encoding="utf-8")
    except OSError as error:
        pytest.skip(f"needs the kernel's headers (linux-libc-dev): {error}")
    found = {
        match[1]: int(match[2]) for match in re.finditer(r"#define (__NR\w+)[ \t]+(\d+)", text)
    }
    names = _GENERIC_NAMES if machine == "aarch64" else {}
    return {name: found[names.get(name, f"__NR_{name}")] for name in seccomp._SYSTEM_CALLS}


def _verdict(
    machine: str, number: int, *arguments: int, architecture: int | None = None
) -> int | None:
    """What the filter for *machine* says to a system call, by the rules of classic BPF."""
    data = struct.pack(
        "=IIQ6Q",
        number,
        architecture or seccomp._AUDIT_ARCHITECTURES[machine],
        0,
        *(*arguments, *(0,) * (6 - len(arguments))),
    )
    program = _PROGRAMS[machine]
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                pytest.fail(f"an instruction that the filter should not use: {code:#x}")


def _number(machine: str, name: str) -> int:
    return int(getattr(seccomp._SYSTEM_CALLS[name], machine))


@pytest.mark.parametrize("machine", _MACHINES)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    ours = {name: _number(machine, name) for name in seccomp._SYSTEM_CALLS}
    assert ours == _numbers_of_kernel(machine)


@settings(deadline=None)
@given(_machines, _numbers)
def test_only_the_calls_of_the_table_are_allowed(machine: str, number: int) -> None:
    unconditional = {
        _number(machine, name) for name in seccomp._SYSTEM_CALLS if name not in seccomp._CONDITIONS
    }
    with_these_arguments = {_number(machine, "mmap")}
    expected = _ALLOWED if number in unconditional | with_these_arguments else _REFUSED
    assert _verdict(machine, number) == expected


@pytest.mark.parametrize("name", seccomp._SYSTEM_CALLS)
def test_numbers_of_the_x32_abi_are_no_way_around(name: str) -> None:
    """Bit 30 makes it another call of the same architecture."""
    arguments = (seccomp._CLONE_THREAD, seccomp._F_GETFD, 0, 0)
    assert _verdict("x86_64", _number("x86_64", name) | _X32, *arguments) == _REFUSED


@settings(deadline=None)
@given(_machines, _numbers, st.integers(1, 2**32 - 1))
def test_calls_of_another_architecture_end_the_process(
    machine: str, number: int, architecture: int
) -> None:
    if architecture != seccomp._AUDIT_ARCHITECTURES[machine]:
        assert _verdict(machine, number, architecture=architecture) == _KILLED


def _clones() -> Iterator[tuple[int, int]]:
    glibc, musl = 0x3D0F00, 0x7D0F00
    yield glibc, _ALLOWED
    yield musl, _ALLOWED
    yield signal.SIGCHLD, _REFUSED  # fork(2)
    yield 0x4100 | signal.SIGCHLD, _REFUSED  # vfork(2)
    for namespace in (0x20000, *(1 << bit for bit in range(25, 31))):
        yield glibc | namespace, _REFUSED


@pytest.mark.parametrize("machine", _MACHINES)
@pytest.mark.parametrize(("flags", "expected"), list(_clones()))
def test_clone_makes_threads_only(machine: str, flags: int, expected: int) -> None:
    assert _verdict(machine, _number(machine, "clone"), flags) == expected


@settings(deadline=None)
@given(_machines, _numbers)
def test_ioctl_knows_few_requests(machine: str, request: int) -> None:
    allowed = {seccomp._TCGETS, seccomp._FIOCLEX, seccomp._FIONCLEX}
    expected = _ALLOWED if request in allowed else _REFUSED
    assert _verdict(machine, _number(machine, "ioctl"), 0, request) == expected
    for known in allowed:
        assert _verdict(machine, _number(machine, "ioctl"), 0, known) == _ALLOWED


@settings(deadline=None)
@given(_machines, st.integers(0, 2000))
def test_fcntl_knows_few_commands(machine: str, command: int) -> None:
    expected = _ALLOWED if command in {1, 2, 3, 1030} else _REFUSED
    assert _verdict(machine, _number(machine, "fcntl"), 0, command) == expected


@settings(deadline=None)
@given(_machines, st.integers(0, 2**64 - 1))
def test_memory_is_private(machine: str, flags: int) -> None:
    expected = _REFUSED if flags & mmap.MAP_SHARED else _ALLOWED
    assert _verdict(machine, _number(machine, "mmap"), 0, 0, 0, flags) == expected


@pytest.mark.parametrize("machine", _MACHINES)
def test_program_is_one_that_the_kernel_accepts(machine: str) -> None:
    """In its length, and in that all jumps stay inside."""
    program = _PROGRAMS[machine]
    assert len(program) <= 4096
    for at, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(program)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86_64")
def test_call_of_32_bits_ends_the_process(tmp_path: Path) -> None:
    """By int 0x80 a process of 64 bits reaches the calls of i386, whose numbers are others."""

    def call(_root: int) -> int:
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())

    code = mmap.mmap(
        -1,
        mmap.PAGESIZE,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
    )
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    if not isinstance(in_child(lambda: call(0)), int):
        pytest.skip("this kernel runs no programs of 32 bits")
    assert behind(tmp_path, (system_call_filter,), call) == f"ended by {-signal.SIGSYS}"


@pytest.mark.parametrize(
    ("machine", "highest", "reason"),
    [
        ("armv7l", 2**31 - 1, "32 bits on armv7l"),
        ("aarch64", 2**31 - 1, "32 bits on aarch64"),
        ("x86_64", 2**31 - 1, "32 bits on x86_64"),
        ("riscv64", 2**63 - 1, "riscv64"),
        ("aarch64_be", 2**63 - 1, "aarch64_be"),
    ],
)
def test_other_machines_have_no_filter_and_say_so(machine: str, highest: int, reason: str) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        seccomp.filter_program(machine, highest)
    assert caught.value.errno == errno.ENOSYS


def test_threads_inherit_the_filter(tmp_path: Path) -> None:
    def work(_root: int) -> list[str]:
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(outcome(_unshare)))
        thread.start()
        thread.join()
        return found

    assert behind(tmp_path, (system_call_filter,), work) == ["ENOSYS"]


def _unshare() -> None:
    linux.unshare(linux.CLONE_NEWUTS)
