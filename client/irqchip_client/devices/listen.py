"""A unix socket as a device's other end: clients come and go, one at a time, and the device sees one descriptor."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from contextlib import suppress

KEEP = 1 << 16  # the newest bytes of output, which are kept while no client is connected


def listen(path: str) -> int:
    """Listens at a path, replacing an earlier listener, and returns the device's end."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    device, inner = socket.socketpair()
    threading.Thread(target=_Relay(listener, inner).run, name="listen", daemon=True).start()
    return device.detach()


class _Relay:
    """Carries bytes between the device and the client. It reads from one no faster than the other takes the bytes."""

    def __init__(self, listener: socket.socket, device: socket.socket) -> None:
        self.listener = listener
        self.device = device
        self.client: socket.socket | None = None
        self.client_sends = False  # the client may still send; if not, it may still receive
        self.to_client = bytearray()
        self.to_device = bytearray()
        device.setblocking(False)

    def run(self) -> None:
        while True:
            poll = select.poll()
            for connection, events in self.interests():
                poll.register(connection, events)
            for descriptor, events in poll.poll():
                if descriptor == self.listener.fileno():
                    self.client = self.listener.accept()[0]
                    self.client.setblocking(False)
                    self.client_sends = True
                elif descriptor == self.device.fileno():
                    self.serve_device(events)
                elif self.client is not None and descriptor == self.client.fileno():
                    self.serve_client(events)

    def interests(self) -> list[tuple[socket.socket, int]]:
        device = select.POLLOUT if self.to_device else 0
        if self.client is None:
            return [(self.listener, select.POLLIN), (self.device, device | select.POLLIN)]
        client = select.POLLOUT if self.to_client else 0
        if self.client_sends and not self.to_device:
            client |= select.POLLIN
        if len(self.to_client) < KEEP:
            device |= select.POLLIN
        return [(self.client, client), (self.device, device)]

    def serve_device(self, events: int) -> None:
        if events & select.POLLOUT:
            del self.to_device[: self.device.send(self.to_device)]
        if events & select.POLLIN:
            self.to_client += self.device.recv(KEEP)
            if self.client is None:
                del self.to_client[:-KEEP]

    def serve_client(self, events: int) -> None:
        assert self.client is not None
        try:
            if events & select.POLLOUT:
                del self.to_client[: self.client.send(self.to_client)]
            if self.client_sends and events & (select.POLLIN | select.POLLHUP):
                data = self.client.recv(KEEP)
                self.to_device += data
                self.client_sends = bool(data)
            left = not self.client_sends and bool(events & (select.POLLHUP | select.POLLERR))
        except OSError:
            left = True
        if left:
            self.client.close()
            self.client = None
