"""How many bytes a client of this machine has yet to read: known to the kernel that both use."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

# Constants and layouts of linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h: see sock_diag(7).
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_QUESTION: Final = struct.Struct("=BBBxI")
_ADDRESSES: Final = struct.Struct("!HH4s12x4s12x")
_REST: Final = struct.Struct("=III")
_RECEIVE_QUEUE: Final = struct.Struct("=I")
_RECEIVE_QUEUE_AT: Final = _HEADER.size + 56  # idiag_rqueue of inet_diag_msg

_ANY: Final = 0xFFFFFFFF


def unread_bytes(connection: socket.socket) -> int:
    """How many of the bytes sent over *connection* the program at its other end has not read.

    They are in the queue of either end. It is never too low, but a byte counts twice until its
    arrival is acknowledged, which the kernel may put off for a moment.

    Args:
        connection: a TCP connection over IPv4 whose both ends are in this network namespace.

    Raises:
        OSError: nobody is at the other end.
    """
    waiting_here = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(struct.calcsize("i")))
    return int(struct.unpack("i", waiting_here)[0]) + _received_but_unread(connection)


def _received_but_unread(connection: socket.socket) -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_question(connection))
        answer = kernel.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:
        raise ConnectionResetError("nobody is at the other end of the connection")
    return int(_RECEIVE_QUEUE.unpack_from(answer, _RECEIVE_QUEUE_AT)[0])


def _question(connection: socket.socket) -> bytes:
    here, there = connection.getsockname(), connection.getpeername()
    body = (
        _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY)
        + _ADDRESSES.pack(there[1], here[1], socket.inet_aton(there[0]), socket.inet_aton(here[0]))
        + _REST.pack(0, _ANY, _ANY)  # any interface, any cookie
    )
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body
