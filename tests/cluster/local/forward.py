"""Forwards loopback ports of this machine into a cluster's network namespace.

A separate program, standard library only: `forward.py PID 127.0.0.1:PORT=ADDRESS:PORT …`. A socket
belongs to the namespace in which its process created it. So the program first creates the listening
sockets, then enters the namespace of PID, and opens each outgoing connection there.
"""

import asyncio
import ctypes
import os
import socket
import sys
from pathlib import Path
from typing import cast

_CLONE_NEWNET = 0x40000000


class Half(asyncio.Protocol):
    """One side of a connection. It writes its data to the other side, at the speed of that side."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=1 << 20)

    def data_received(self, data: bytes) -> None:
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        if self.other and self.other.transport and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        if self.other and self.other.transport:
            self.other.transport.close()


async def _accept(listener: socket.socket, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(_connect(connection, host, port))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _connect(connection: socket.socket, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    try:
        _, inner = await loop.create_connection(Half, host, port)
    except OSError:
        connection.close()  # no process listens at the target: the client gets a closed connection
        return
    outer = Half()
    outer.other, inner.other = inner, outer
    await loop.connect_accepted_socket(lambda: outer, connection)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _enter_network_namespace(pid: str) -> None:
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns to {pid}: {os.strerror(number)}")


async def _serve(pid: str, rules: list[str]) -> None:
    pairs = [rule.split("=") for rule in rules]
    listeners = [_listen(address) for address, _ in pairs]
    _enter_network_namespace(pid)
    targets = [target.rpartition(":") for _, target in pairs]
    await asyncio.gather(
        *(
            _accept(listener, host, int(port))
            for listener, (host, _, port) in zip(listeners, targets, strict=True)
        )
    )


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2:]))
