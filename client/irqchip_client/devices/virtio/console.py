"""A virtio console: characters out, and characters in. Section 5.3."""

from __future__ import annotations

import errno
import os
import select
from enum import IntFlag
from typing import Final

from irqchip_client._errors import InvalidArgument
from irqchip_client.devices.output import Output, output_to

from .mmio import VirtioDevice
from .parts import gather, part, scatter
from .queue import BrokenQueueError

DEVICE_ID: Final = 3
RECEIVE, TRANSMIT = 0, 1  # queues, 5.3.2
CHUNK: Final = 512  # bytes that are moved at once: a pipe that poll() reports as writable accepts as many
MOST_AT_ONCE: Final = 1 << 16  # bytes of a buffer that are sent in a turn
RETRY: Final = 0.02  # seconds before output that was not accepted is tried again
EMERG_WR: Final = 8  # the offset of a field of the configuration, 5.3.4
CONFIG: Final = bytes(12)  # cols, rows, max_nr_ports, emerg_wr


class Feature(IntFlag):
    """5.3.3."""

    EMERG_WRITE = 1 << 2


class VirtioConsole(VirtioDevice):
    """A console with one port.

    output        a descriptor or a function for the guest's output; output that it does not accept yet is tried again
    input_fd      a descriptor of the guest's input, which is read only while the driver offers buffers
    slot          the device's number among the machine's virtio devices, 0 to 7
    address, gsi  the registers and the line; by default those of the slot

    If the process ends while it sends a buffer, the next process sends the buffer again, from its beginning.
    """

    def __init__(
        self,
        output: Output | int,
        input_fd: int | None = None,
        slot: int = 1,
        address: int | None = None,
        gsi: int | None = None,
    ) -> None:
        super().__init__("virtio console", DEVICE_ID, Feature.EMERG_WRITE, 2, slot, address, gsi)
        if not callable(output) and not isinstance(output, int):
            raise InvalidArgument(
                errno.EINVAL, f"VirtioConsole: output is {output!r:.100}: write a descriptor or a function"
            )
        self._output = output_to(output) if isinstance(output, int) else output
        self._sent = 0  # bytes of the buffer that is being sent
        self._again = self.timer(lambda: self.look(TRANSMIT))
        self._input = input_fd
        self._watching = False
        self._poll = select.poll()
        if input_fd is not None:
            self._poll.register(input_fd, select.POLLIN)

    @property
    def config(self) -> bytes:
        return CONFIG

    def write_config(self, offset: int, value: int, size: int) -> None:  # noqa: ARG002 - the lowest byte counts
        """5.3.5: an emergency write sends a character in any state of the device."""
        if offset == EMERG_WR:
            self._output(bytes([value & 0xFF]))

    def queue_ended(self, number: int) -> None:
        if number == TRANSMIT:
            self._sent = 0
            self._again.stop()
        self._watch_input()

    def look(self, number: int) -> None:
        super().look(number)
        self._watch_input()

    def use(self, number: int) -> bool:
        return self._receive() if number == RECEIVE else self._transmit()

    # Output.

    def _transmit(self) -> bool:
        if self._again.due is not None:  # the output waits for another try
            return False
        queue = self.queues[TRANSMIT]
        chain = queue.pop()
        if chain is None:
            return False
        given = chain.given
        end = min(given, self._sent + MOST_AT_ONCE)
        while self._sent < end:
            data = gather(self.ram, part(chain.readable, self._sent, self._sent + CHUNK), CHUNK)
            if self._output(data) is False:
                break
            self._sent += len(data)
        if self._sent < given:
            queue.put_back()
            self._again.start(RETRY if self._sent < end else 0)
            return False
        self._sent = 0
        queue.push(chain, 0)
        return True

    # Input.

    def _watch_input(self) -> None:
        """Watches the input only while the driver has buffers for it."""
        if self._input is None:
            return
        queue = self.queues[RECEIVE]
        watching = self.is_live and queue.is_live and queue.has_buffers
        if watching != self._watching:
            self._watching = watching
            self.host.watch(self._input, self._input_ready if watching else None)

    def _input_ready(self) -> None:
        self.look(RECEIVE)

    def _receive(self) -> bool:
        descriptor = self._input
        if descriptor is None or not self._poll.poll(0):
            return False
        queue = self.queues[RECEIVE]
        chain = queue.pop()
        if chain is None:
            return False
        if not chain.room:
            raise BrokenQueueError("a buffer to receive into has no room")
        try:
            data = os.read(descriptor, min(chain.room, CHUNK))
        except BlockingIOError:
            queue.put_back()
            return False
        except OSError:
            data = b""
        if not data:  # the end of the input
            queue.put_back()
            if self._watching:
                self.host.watch(descriptor, None)
            self._input, self._watching = None, False
            return False
        queue.push(chain, scatter(self.ram, chain.writable, data))
        return True
