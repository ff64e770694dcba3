"""The jail as seen from inside: a process that enters it is told to misbehave.

Each misdeed succeeds without the jail, so that the test is able to fail; is stopped by each
measure that is said to stop it, alone; and by the whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from prison import (
    LIMITS,
    ORDINARY_USER,
    SUCCEEDED,
    answer_by,
    behind,
    capabilities,
    confined,
    in_child,
    landlock,
    lose,
    measures_of_jail,
    mount_namespace,
    network_namespace,
    no_new_privileges,
    outcome,
    process_namespace,
    resource_limits,
    root_directory,
    system_call_filter,
)

from layermanager import linux
from layermanager.model import Digest, Limits
from layermanager.unpack import jail
from layermanager.unpack.client import Unpacker
from layermanager.unpack.messages import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prison import Measure

_libc: Final = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE: Final = 0x4206
_TIOCSTI: Final = 0x5412
_AT_FDCWD: Final = -100
_PR_GET_PDEATHSIG: Final = 2
_PR_SET_DUMPABLE: Final = 4
_CAP_SETGID: Final = 6
_CAP_SETPCAP: Final = 8
_CAP_SYS_CHROOT: Final = 18
_CAP_SYS_ADMIN: Final = 21
_LANDLOCK: Final = 444
_HANDLE_BYTES: Final = 128


@dataclass(frozen=True)
class Scene:
    """What there is to misbehave with.

    Attributes:
        layer: the directory of the worker.
        secret: a file of the parent, beside it.
        victim: another process of the same user.
        server: a TCP port on which somebody listens.
        abstract_socket: a unix socket without a file on which somebody listens.
        handle: the file handle of the secret, as from name_to_handle_at(2).
        terminal: the descriptor of a terminal that was opened before.
    """

    layer: Path
    secret: Path
    victim: int
    server: tuple[str, int]
    abstract_socket: bytes
    handle: bytes
    terminal: int


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    layer, secret = tmp_path / "layer", tmp_path / "secret"
    layer.mkdir()
    secret.write_bytes(b"secret")
    shutil.copy(_program("true"), layer / "program")
    master, terminal = os.openpty()
    name = f"\0layermanager-test-{os.getpid()}".encode()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as listening,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as victim,
    ):
        listening.bind(name)
        listening.listen()
        yield Scene(
            layer,
            secret,
            victim.pid,
            server.getsockname(),
            name,
            _handle_of(secret),
            terminal,
        )
        victim.kill()
    os.close(master)
    os.close(terminal)


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None
    return path


def _handle_of(path: Path) -> bytes:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", _HANDLE_BYTES, 0), 8 + _HANDLE_BYTES)
    _require_success(
        _libc.name_to_handle_at(
            _AT_FDCWD, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0
        )
    )
    return handle.raw


def _require_success(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Misdeeds. Each gets the scene and the descriptor of its root.


def _read_a_file_of_the_parent(scene: Scene, _root: int) -> None:
    os.open(scene.secret, os.O_RDONLY)


def _write_a_file_of_the_parent(scene: Scene, _root: int) -> None:
    os.open(scene.secret, os.O_WRONLY)


def _go_up_from_the_root_descriptor(_scene: Scene, root: int) -> None:
    os.open("../secret", os.O_RDONLY, dir_fd=root)


def _read_through_proc(scene: Scene, _root: int) -> None:
    os.open(f"/proc/{scene.victim}/root{scene.secret}", os.O_RDONLY)


def _see_other_processes(scene: Scene, _root: int) -> None:
    assert str(scene.victim) in os.listdir("/proc")  # noqa: PTH208 - as a worker would


def _escape_from_a_root_directory(_scene: Scene, _root: int) -> None:
    above = os.open("/", os.O_RDONLY)
    Path("cell").mkdir()
    os.chroot("cell")
    os.fchdir(above)
    os.open("../secret", os.O_RDONLY)


def _open_by_handle(scene: Scene, root: int) -> None:
    _require_success(_libc.open_by_handle_at(root, scene.handle, os.O_RDONLY))


def _connect_to_a_server(scene: Scene, _root: int) -> None:
    with socket.socket() as connection:
        connection.connect(scene.server)


def _connect_to_an_abstract_socket(scene: Scene, _root: int) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(scene.abstract_socket)


def _make_a_socket(_scene: Scene, _root: int) -> None:
    socket.socketpair()


def _make_a_socket_file(_scene: Scene, root: int) -> None:
    os.mknod("socket", stat.S_IFSOCK | 0o600, dir_fd=root)


def _signal_another_process(scene: Scene, _root: int) -> None:
    os.kill(scene.victim, 0)


def _trace_another_process(scene: Scene, _root: int) -> None:
    _require_success(_libc.ptrace(_PTRACE_SEIZE, scene.victim, None, None))


def _have_signals_sent(scene: Scene, root: int) -> None:
    fcntl.fcntl(root, fcntl.F_SETOWN, scene.victim)


def _type_into_the_terminal(scene: Scene, _root: int) -> None:
    fcntl.ioctl(scene.terminal, _TIOCSTI, b"x")


def _fork(_scene: Scene, _root: int) -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def _execute_a_file_of_the_layer(_scene: Scene, root: int) -> None:
    program = os.open("program", os.O_PATH, dir_fd=root)
    os.execve(program, ["program"], {})  # noqa: S606 - what a shell would do, too


def _mount(_scene: Scene, _root: int) -> None:
    linux.mount(b"none", b"/", linux.MS_REC | linux.MS_PRIVATE)


def _enter_a_user_namespace(_scene: Scene, _root: int) -> None:
    linux.unshare(linux.CLONE_NEWUSER)


def _become_another_user(_scene: Scene, _root: int) -> None:
    os.setuid(12345)


def _read_a_file_of_the_layer(_scene: Scene, root: int) -> None:
    os.open("program", os.O_RDONLY, dir_fd=root)


def _read_a_device_of_the_layer(_scene: Scene, root: int) -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=root)
    os.open("null", os.O_RDONLY, dir_fd=root)


def _write_a_device_of_the_layer(_scene: Scene, root: int) -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=root)
    os.open("null", os.O_WRONLY, dir_fd=root)


def _write_a_large_file(_scene: Scene, root: int) -> None:
    file = os.open("large", os.O_WRONLY | os.O_CREAT, dir_fd=root)
    os.ftruncate(file, LIMITS.unpacked_bytes + 1)


def _open_many_files(_scene: Scene, root: int) -> None:
    for _ in range(jail._OPEN_FILES):
        os.open(".", os.O_RDONLY, dir_fd=root)


def _take_much_memory(_scene: Scene, _root: int) -> None:
    size = jail._DATA_BYTES + LIMITS.zstd_window_bytes
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _take_shared_memory(_scene: Scene, _root: int) -> None:
    mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)


@dataclass(frozen=True)
class Misdeed:
    """What a hostile worker might do, and what stops it.

    Attributes:
        act: does it.
        stopped_by: measures each of which stops it alone.
        needs_root: whether an ordinary user has no right to it anyway.
        given: measures behind which it is tried always.
    """

    act: Callable[[Scene, int], None]
    stopped_by: tuple[Measure, ...]
    needs_root: bool = False
    given: tuple[Measure, ...] = ()


_MISDEEDS: Final = {
    misdeed.act.__name__.strip("_"): misdeed
    for misdeed in (
        Misdeed(_read_a_file_of_the_parent, (mount_namespace, root_directory, landlock)),
        Misdeed(_write_a_file_of_the_parent, (mount_namespace, root_directory, landlock)),
        Misdeed(_go_up_from_the_root_descriptor, (mount_namespace, root_directory, landlock)),
        Misdeed(_read_through_proc, (mount_namespace, root_directory, landlock, capabilities)),
        Misdeed(_see_other_processes, (mount_namespace, root_directory, landlock)),
        Misdeed(
            _escape_from_a_root_directory,
            (landlock, capabilities, system_call_filter),
            needs_root=True,
            given=(root_directory,),
        ),
        Misdeed(_open_by_handle, (capabilities, landlock, system_call_filter), needs_root=True),
        Misdeed(_connect_to_a_server, (network_namespace, landlock, system_call_filter)),
        Misdeed(_connect_to_an_abstract_socket, (network_namespace, landlock, system_call_filter)),
        Misdeed(_make_a_socket, (system_call_filter,)),
        Misdeed(_make_a_socket_file, (landlock,)),
        Misdeed(_signal_another_process, (process_namespace, landlock, system_call_filter)),
        Misdeed(
            _trace_another_process,
            (process_namespace, landlock, capabilities, system_call_filter),
            needs_root=True,
        ),
        Misdeed(_have_signals_sent, (process_namespace, system_call_filter)),
        Misdeed(_type_into_the_terminal, (system_call_filter,), needs_root=True),
        Misdeed(_fork, (system_call_filter,)),
        Misdeed(_execute_a_file_of_the_layer, (mount_namespace, landlock, system_call_filter)),
        Misdeed(_mount, (system_call_filter,), needs_root=True, given=(mount_namespace,)),
        Misdeed(_enter_a_user_namespace, (root_directory, system_call_filter)),
        Misdeed(_become_another_user, (capabilities, system_call_filter), needs_root=True),
        Misdeed(_read_a_file_of_the_layer, (landlock,)),
        Misdeed(_read_a_device_of_the_layer, (mount_namespace, landlock), needs_root=True),
        Misdeed(_write_a_device_of_the_layer, (mount_namespace,), needs_root=True),
        Misdeed(_write_a_large_file, (resource_limits,)),
        Misdeed(_open_many_files, (resource_limits,)),
        Misdeed(_take_much_memory, (resource_limits,)),
        Misdeed(_take_shared_memory, (system_call_filter,)),
    )
}
_ALONE: Final = [
    pytest.param(name, measure, id=f"{measure.__name__}-{name}")
    for name, misdeed in _MISDEEDS.items()
    for measure in misdeed.stopped_by
]
_NEED_ROOT: Final = (
    network_namespace,
    process_namespace,
    mount_namespace,
    root_directory,
    capabilities,  # an ordinary user has none to give up
)


def _require_landlock(version: int) -> None:
    try:
        found = linux.landlock_version()
    except OSError as error:
        pytest.skip(f"needs Landlock: {error}")
    if found < version:
        pytest.skip(f"needs version {version} of Landlock, this kernel has {found}")


def _require(misdeed: Misdeed, measure: Measure | None) -> None:
    """Skip what this user or this kernel cannot try."""
    needs_root = misdeed.needs_root or measure in _NEED_ROOT or misdeed.given
    if needs_root and os.geteuid() != 0:
        pytest.skip("needs root: the rights to misbehave, or to build the measure alone")
    if measure is landlock:
        is_scope = misdeed.act in (_signal_another_process, _connect_to_an_abstract_socket)
        _require_landlock(6 if is_scope else 4 if misdeed.act is _connect_to_a_server else 2)


@pytest.mark.parametrize("name", _MISDEEDS)
def test_misdeed_succeeds_without_the_jail(scene: Scene, name: str) -> None:
    misdeed = _MISDEEDS[name]
    _require(misdeed, None)
    found = behind(
        scene.layer, misdeed.given, lambda root: outcome(partial(misdeed.act, scene, root))
    )
    assert found == SUCCEEDED


@pytest.mark.parametrize(("name", "measure"), _ALONE)
def test_measure_alone_stops_misdeed(scene: Scene, name: str, measure: Measure) -> None:
    misdeed = _MISDEEDS[name]
    _require(misdeed, measure)
    found = behind(
        scene.layer,
        (*misdeed.given, measure),
        lambda root: outcome(partial(misdeed.act, scene, root)),
    )
    assert found in errno.errorcode.values()


@pytest.mark.parametrize("name", _MISDEEDS)
def test_jail_stops_misdeed(scene: Scene, name: str) -> None:
    misdeed = _MISDEEDS[name]
    _require(misdeed, None)
    found = confined(scene.layer, lambda root: outcome(partial(misdeed.act, scene, root)))
    assert found in errno.errorcode.values()


_DANGEROUS_CALLS: Final = {
    "bpf": {"x86_64": 321, "aarch64": 280},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "add_key": {"x86_64": 248, "aarch64": 217},
    "userfaultfd": {"x86_64": 323, "aarch64": 282},
    "perf_event_open": {"x86_64": 298, "aarch64": 241},
    "process_vm_readv": {"x86_64": 310, "aarch64": 270},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
    "clone3": {"x86_64": 435, "aarch64": 435},
    "setns": {"x86_64": 308, "aarch64": 268},
    "chroot": {"x86_64": 161, "aarch64": 51},
    "pivot_root": {"x86_64": 155, "aarch64": 41},
    "open_tree": {"x86_64": 428, "aarch64": 428},
    "init_module": {"x86_64": 175, "aarch64": 105},
    "reboot": {"x86_64": 169, "aarch64": 142},
    "prctl": {"x86_64": 157, "aarch64": 167},
}


def _call(name: str) -> str:
    """The error of the system call *name* with arguments that are never right."""
    numbers = _DANGEROUS_CALLS[name]
    if platform.machine() not in numbers:
        pytest.skip(f"no table of system calls for {platform.machine()}")
    number, bad = ctypes.c_long(numbers[platform.machine()]), ctypes.c_long(-1)
    return outcome(lambda: _require_success(_libc.syscall(number, bad, bad, bad, bad, bad, bad)))


@pytest.mark.parametrize("name", _DANGEROUS_CALLS)
def test_dangerous_system_call_does_not_exist(tmp_path: Path, name: str) -> None:
    if in_child(lambda: _call(name)) == "ENOSYS":
        pytest.skip(f"this kernel has no {name}")
    assert behind(tmp_path, (system_call_filter,), lambda _: _call(name)) == "ENOSYS"


@pytest.mark.usefixtures("needs_root")
def test_setuid_program_gives_no_rights(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(_program("id"), program)
    program.chmod(0o4755)

    def user_of_program(root: int) -> str:
        descriptor = os.open("program", os.O_PATH, dir_fd=root)
        os.setgroups([])
        os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        command = [f"/proc/self/fd/{descriptor}", "-u"]
        done = subprocess.run(command, check=True, capture_output=True, pass_fds=(descriptor,))
        return done.stdout.decode().strip()

    assert behind(tmp_path, (), user_of_program) == "0"
    assert behind(tmp_path, (no_new_privileges,), user_of_program) == str(ORDINARY_USER)


def test_limits_cannot_be_raised_again(tmp_path: Path) -> None:
    kinds = (
        resource.RLIMIT_CORE,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_DATA,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
    )
    limits = behind(
        tmp_path, (resource_limits,), lambda _: [resource.getrlimit(kind) for kind in kinds]
    )
    bounds = [
        0,
        LIMITS.unpacked_bytes,
        jail._OPEN_FILES,
        jail._DATA_BYTES + LIMITS.zstd_window_bytes,
        0,
        0,
    ]
    assert limits == [[bound, bound] for bound in bounds]


def test_limit_beyond_what_the_kernel_can_count_is_no_fault(tmp_path: Path) -> None:
    limits = Limits(unpacked_bytes=2**70, zstd_window_bytes=2**70)
    assert behind(tmp_path, (lambda _: jail._limit_resources(limits),), lambda _: "") == ""


def test_no_core_is_dumped(tmp_path: Path) -> None:
    def crash(_root: int) -> bool:
        child = os.fork()
        if child == 0:
            os.abort()
        return os.WCOREDUMP(os.waitpid(child, 0)[1])

    os.chdir(tmp_path)
    assert behind(tmp_path, (resource_limits,), crash) is False


def test_jail_still_lets_a_layer_grow(tmp_path: Path) -> None:
    """What a worker needs is left: files, directories, links, whiteouts, removal, threads."""

    def work(root: int) -> list[str]:
        os.mkdir("directory", 0o755, dir_fd=root)
        file = os.open("directory/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=root)
        os.write(file, b"content")
        os.utime(file, ns=(1, 2))
        os.close(file)
        os.mkdir("other", dir_fd=root)
        os.link("directory/file", "other/link", src_dir_fd=root, dst_dir_fd=root)
        os.symlink("anywhere", "symlink", dir_fd=root)
        os.mknod("whiteout", stat.S_IFCHR, 0, dir_fd=root)
        os.unlink("directory/file", dir_fd=root)
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.extend(os.listdir(root)))
        thread.start()
        thread.join()
        return sorted(found)

    # A worker is small; what is forked here is as large as all tests before have made this process,
    # and where memory is short, a new thread dies before it begins.
    roomy = replace(LIMITS, zstd_window_bytes=16 * 1024**3)
    assert confined(tmp_path, work, roomy) == ["directory", "other", "symlink", "whiteout"]


@pytest.mark.usefixtures("needs_root")
def test_root_keeps_just_the_capabilities_that_unpacking_needs(tmp_path: Path) -> None:
    def sets(_root: int) -> list[str]:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return [line for line in status.splitlines() if line.startswith("Cap")]

    mask = sum(1 << capability for capability in jail._KEPT_CAPABILITIES)
    bound: Measure = lambda _: linux.bound_capabilities(jail._KEPT_CAPABILITIES)  # noqa: E731 - a measure like the others
    assert behind(tmp_path, (bound, capabilities), sets) == [
        "CapInh:\t0000000000000000",
        f"CapPrm:\t{mask:016x}",
        f"CapEff:\t{mask:016x}",
        f"CapBnd:\t{mask:016x}",
        "CapAmb:\t0000000000000000",
    ]


def test_death_with_the_parent_survives_the_jail(tmp_path: Path) -> None:
    def asked_for_signal(_root: int) -> int:
        signal_number = ctypes.c_int()
        _require_success(_libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal_number), 0, 0, 0))
        return signal_number.value

    measures = (
        lambda _: linux.die_with_parent(signal.SIGKILL),
        lambda _: jail.leave_namespaces(),
        mount_namespace,
        root_directory,
        landlock,
        capabilities,
    )
    available = measures if os.geteuid() == 0 else measures[:1]
    assert behind(tmp_path, available, asked_for_signal) == signal.SIGKILL


# A measure that this system does not give


_NO_NAMESPACES: Final = {
    "network namespace": "Operation not permitted",
    "process namespace": "Operation not permitted",
    "IPC namespace": "Operation not permitted",
    "host name namespace": "Operation not permitted",
    "mount namespace": "Operation not permitted",
}


@pytest.mark.usefixtures("needs_root")
def test_all_measures_are_in_force_for_root(tmp_path: Path) -> None:
    _require_landlock(2)
    assert measures_of_jail(tmp_path, lambda: None) == {}


@pytest.mark.usefixtures("needs_root")
def test_without_cap_sys_admin_the_namespaces_are_missing(tmp_path: Path) -> None:
    """As root in a container: the capabilities that are left are still given up."""
    missing = measures_of_jail(tmp_path, lambda: lose(_CAP_SYS_ADMIN))
    assert missing == _NO_NAMESPACES


@pytest.mark.usefixtures("needs_root")
def test_without_cap_setpcap_only_the_bounds_are_missing(tmp_path: Path) -> None:
    missing = measures_of_jail(tmp_path, lambda: lose(_CAP_SETPCAP))
    assert missing == {"capability bounds": "Operation not permitted"}


@pytest.mark.usefixtures("needs_root")
def test_without_cap_setgid_only_the_groups_are_kept(tmp_path: Path) -> None:
    missing = measures_of_jail(tmp_path, lambda: lose(_CAP_SETGID))
    assert missing == {"no other groups": "Operation not permitted"}


@pytest.mark.usefixtures("needs_root")
def test_without_cap_sys_chroot_only_the_roots_are_missing(tmp_path: Path) -> None:
    missing = measures_of_jail(tmp_path, lambda: lose(_CAP_SYS_CHROOT))
    assert missing == {"root directory": "Operation not permitted"}


@pytest.mark.usefixtures("needs_root")
def test_no_mount_is_touched_without_a_mount_namespace(tmp_path: Path) -> None:
    """Else the mounts of the whole system would be gone."""

    def build() -> tuple[str, list[str], list[str]]:
        jail._become_oneself_in_user_namespace()
        linux.unshare(linux.CLONE_NEWNS)
        Path("/proc/sys/user/max_mnt_namespaces").write_bytes(b"0")
        before = _mounts()
        root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        measure = jail._attempt("mount namespace", lambda: jail._leave_mount_namespace(root))
        return measure.why_not, before, _mounts()

    result = in_child(build)
    assert isinstance(result, list)
    why_not, before, after = result
    assert why_not == "No space left on device"
    assert before == after


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()


@pytest.mark.usefixtures("needs_root")
def test_without_landlock_only_it_is_missing(tmp_path: Path) -> None:
    missing = measures_of_jail(tmp_path, lambda: answer_by(_LANDLOCK, errno.ENOSYS))
    assert missing == {"Landlock": "Function not implemented"}


@pytest.mark.usefixtures("needs_root")
def test_without_seccomp_only_the_filter_is_missing(tmp_path: Path) -> None:
    prctl = _DANGEROUS_CALLS["prctl"].get(platform.machine())
    if prctl is None:
        pytest.skip(f"no table of system calls for {platform.machine()}")
    missing = measures_of_jail(
        tmp_path, lambda: answer_by(prctl, errno.EINVAL, linux._PR_SET_SECCOMP)
    )
    assert missing == {"system call filter": "Invalid argument"}


@pytest.mark.usefixtures("needs_root")
def test_without_proc_nothing_is_missing_for_root(tmp_path: Path) -> None:
    assert measures_of_jail(tmp_path, _hide_proc) == {}


def _hide_proc() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(b"none", b"/", linux.MS_REC | linux.MS_PRIVATE)
    linux.unmount(b"/proc", linux.MNT_DETACH)


@pytest.mark.usefixtures("needs_root")
def test_in_a_root_directory_of_the_manager_the_own_root_remains(tmp_path: Path) -> None:
    """A manager that was confined by chroot(2) cannot change the root of a mount namespace."""
    (tmp_path / "manager").mkdir()
    layer = tmp_path / "manager" / "layer"
    layer.mkdir()
    missing = measures_of_jail(layer, lambda: os.chroot(tmp_path / "manager"))
    assert missing == {"mount namespace": "Invalid argument"}


@pytest.mark.usefixtures("needs_root")
def test_user_without_user_namespaces_keeps_what_needs_no_rights(public_directory: Path) -> None:
    def before() -> None:
        linux.unshare(linux.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_bytes(b"%d 0 1" % ORDINARY_USER)
        Path("/proc/sys/user/max_user_namespaces").write_bytes(b"0")
        linux.keep_capabilities(())

    missing = measures_of_jail(public_directory, before)
    refused = "Operation not permitted"
    assert missing == {
        "user namespace": "No space left on device",
        **_NO_NAMESPACES,
        "root directory": refused,
        "capability bounds": refused,
    }


@pytest.mark.usefixtures("needs_root")
def test_user_who_cannot_be_mapped_stays_himself(public_directory: Path) -> None:
    """In a user namespace in which he is nobody, the index would name nobody as the owner."""

    def build() -> list[object]:
        _hide_proc()
        _become_ordinary_user()
        root = os.open(public_directory, os.O_RDONLY | os.O_DIRECTORY)
        measures = jail.leave_namespaces()
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=root))
        return [measures[0].name, measures[0].why_not, os.geteuid()]

    assert in_child(build) == ["user namespace", "No such file or directory", ORDINARY_USER]
    assert (public_directory / "file").stat().st_uid == ORDINARY_USER


@pytest.mark.usefixtures("needs_root")
def test_user_with_user_namespaces_has_all_measures(public_directory: Path) -> None:
    _require_landlock(2)
    probe = in_child(lambda: outcome(partial(linux.unshare, linux.CLONE_NEWUSER)))
    if probe != SUCCEEDED:
        pytest.skip(f"needs user namespaces: {probe}")
    assert measures_of_jail(public_directory, _become_ordinary_user) == {}


def _become_ordinary_user() -> None:
    os.setgroups([])
    os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    # As after execve(2): what belongs to the process in /proc is his.
    linux._require_success(linux._libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory of the ordinary user, which he can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        if os.geteuid() == 0:
            os.chown(directory, ORDINARY_USER, ORDINARY_USER)
        yield Path(directory)


# A worker as its manager starts it, seen from outside


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory in /proc of a worker that waits for its layer."""
    monkeypatch.setenv("SECRET", "secret")
    (tmp_path / "layer").mkdir()
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    root = os.open(tmp_path / "layer", os.O_RDONLY | os.O_DIRECTORY)
    index = os.open(tmp_path / "index", os.O_RDWR | os.O_CREAT)
    unpacker = Unpacker(timedelta(seconds=30))
    job = Job(
        digest=Digest("sha256:" + "0" * 64),
        is_package=False,
        limits=Limits(),
        granted=0,
        block_bytes=4096,
    )
    with (
        contextlib.closing(unpacker),
        unpacker.start(job, root, index, lambda need: need.wanted) as unpacking,
    ):
        unpacking.jail_measures()
        assert unpacking._process_descriptor is not None
        info = Path(f"/proc/self/fdinfo/{unpacking._process_descriptor}").read_text("ascii")
        process = next(line.split()[1] for line in info.splitlines() if line.startswith("Pid:"))
        yield Path("/proc") / process
    for descriptor in (inherited, root, index):
        os.close(descriptor)


def test_worker_has_no_environment(worker: Path) -> None:
    assert (worker / "environ").read_bytes() == b""


def test_worker_has_no_descriptors_but_its_own(worker: Path, tmp_path: Path) -> None:
    targets = [str(path.readlink()) for path in descriptors_of(worker)]
    assert [target.partition(":")[0] for target in targets] == [
        "pipe",
        "pipe",
        "pipe",
        "/",
        str(tmp_path / "index"),
        "socket",
    ]
    assert targets[0] != targets[1] == targets[2]


def descriptors_of(process: Path) -> list[Path]:
    return sorted((process / "fd").iterdir(), key=lambda path: int(path.name))


def test_no_process_between_manager_and_worker_shares_an_open_file(worker: Path) -> None:
    """Else a fault of theirs, or a worker before its jail, could change it."""
    parent = _parent_of(worker)
    server = _parent_of(parent)
    assert _parent_of(server) == Path("/proc") / str(os.getpid())
    own = [str(path.readlink()) for path in descriptors_of(Path("/proc/self")) if path.exists()]
    of_parent = [str(path.readlink()) for path in descriptors_of(parent)]
    of_server = [str(path.readlink()) for path in descriptors_of(server)]
    assert [target.partition(":")[0] for target in of_parent[:3]] == ["pipe"] * 3
    assert [target.partition(":")[0] for target in of_server[:3]] == ["socket", "pipe", "pipe"]
    assert not set(of_parent) & set(own[:3])
    assert not set(of_server) & set(own[:3])


def _parent_of(process: Path) -> Path:
    return Path("/proc", (process / "stat").read_text("ascii").rpartition(")")[2].split()[1])


def test_worker_is_confined(worker: Path) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in (worker / "status").read_text("ascii").splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for name in ("net", "pid", "mnt", "ipc", "uts"):
        assert (worker / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink()


def test_measures_are_told_without_a_layer(tmp_path: Path) -> None:
    with contextlib.closing(Unpacker(timedelta(seconds=30))) as unpacker:
        measures = unpacker.jail_measures(tmp_path)
    assert "Landlock" in [measure.name for measure in measures]
    assert list(tmp_path.iterdir()) == []
