"""The common parts of all virtio devices: the MMIO transport's registers, status, features, queues. Sections 2 and 4.2.

The newest draft of the standard, 1.4, adds VIRTIO_F_SUSPEND, which is here as well.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from functools import partial
from typing import Any, ClassVar, Final

from irqchip_client._errors import InvalidArgument
from irqchip_client._model import Architecture
from irqchip_client.devices.device import Device
from irqchip_client.devices.ram import Ram
from irqchip_client.devices.saving import (
    FLAG,
    Bits,
    Fields,
    Kind,
    Number,
    Plain,
    TupleOf,
    load_fields,
    put_fields,
    refused,
    save_fields,
)

from .notes import Notes, Published
from .places import ARM64, MOST, PC
from .queue import BrokenQueueError, Virtqueue

log = logging.getLogger("irqchip_client.devices")

MAGIC, VERSION = 0x7472_6976, 2
VENDOR: Final = 0x6372_7169  # "irqc"
LENGTH: Final = 0x200  # bytes of registers
WIDTH: Final = 4  # bytes of the widest register
MOST_AT_ONCE: Final = 32  # buffers of a queue in one turn; vCPUs' accesses are answered between turns
MOST_COMPLAINTS: Final = 10  # lines in the log about the driver's errors
WORD: Final = 0xFFFF_FFFF


class Register(IntEnum):
    """Offsets. 4.2.2."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_SIZE_MAX = 0x034
    QUEUE_SIZE = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    QUEUE_RESET = 0x0C0
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class Status(IntFlag):
    """Device status. 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """Causes of the interrupt. 4.2.2."""

    USED_BUFFER = 1
    CONFIGURATION = 2


class Feature(IntFlag):
    """Features of all devices. 6."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    IN_ORDER = 1 << 35
    RING_RESET = 1 << 40
    SUSPEND = 1 << 43


# A device uses buffers in order, but does not offer IN_ORDER: that would also oblige the driver to use its descriptors
# in order.
COMMON: Final = Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.VERSION_1 | Feature.RING_RESET | Feature.SUSPEND
NOT_LIVE: Final = Status.DEVICE_NEEDS_RESET | Status.FAILED | Status.SUSPEND
_ADDRESS: Final = Number(0, (1 << 64) - 1)
_QUEUE: Final[Fields] = {
    "size": Number(0, WORD),
    "ready": FLAG,
    "begun": FLAG,
    "areas": TupleOf(_ADDRESS, _ADDRESS, _ADDRESS),
}


class _Queues(Kind):
    """The registers of queues."""

    def save(self, value: Any) -> Plain:
        return [save_fields(queue, _QUEUE) for queue in value]

    def load(self, data: Plain, what: str) -> list[dict[str, Any]]:
        if type(data) is not list:
            raise refused(what, data, "a list of queues")
        return [load_fields(each, _QUEUE, f"{what}[{at}]") for at, each in enumerate(data)]

    def put(self, owner: object, name: str, value: Any) -> None:
        for queue, fields in zip(getattr(owner, name), value, strict=True):
            put_fields(queue, _QUEUE, fields)
            queue.areas = list(queue.areas)
            queue.end()


class VirtioDevice(Device):
    """A virtio device. A subclass adds the configuration and the use of buffers.

    slot          the device's number among the machine's virtio devices; see places.py
    address, gsi  the registers and the line; by default those of the slot on the VM's architecture
    device_id     the type of device: section 5
    features      the features of its type
    queues        the number of queues

    The line is high while InterruptStatus has a bit.
    """

    USES_MEMORY = True
    STATE: ClassVar[Fields] = {
        "status": Bits(0xFF, Status),
        "driver_features": Number(0, (1 << 128) - 1),
        "interrupt_status": Bits(3, Interrupt),
        "config_generation": Number(0, WORD),
        "_config_changed": FLAG,
        "_device_features_sel": Number(0, WORD),
        "_driver_features_sel": Number(0, WORD),
        "_queue_sel": Number(0, WORD),
        "queues": _Queues(),
    }

    def __init__(
        self, name: str, device_id: int, features: int, queues: int, slot: int, address: int | None, gsi: int | None
    ) -> None:
        super().__init__(name)
        if not 0 <= slot < MOST:
            raise InvalidArgument(errno.EINVAL, f"slot {slot} of a virtio device: use 0 to {MOST - 1}")
        self.slot = slot
        self._address, self._gsi = address, gsi
        self.device_id = device_id
        self.features = int(features) | int(COMMON)
        self.queues = [Virtqueue() for _ in range(queues)]
        self._line = self.line(0)
        self._ram: Ram | None = None
        self._notes: Notes | None = None
        self._published: Published | None = None
        self._go_on = self.timer(self._use_all)
        # The reason why the device last needed a reset.
        self.broken = ""
        self._complaints = MOST_COMPLAINTS
        self.config_generation = 0
        self._power_on()
        self.place(Architecture.X86)

    def place(self, architecture: Architecture) -> None:
        """Puts registers and line at the architecture's default place, except those that the constructor was given."""
        default = (ARM64 if architecture is Architecture.ARM64 else PC)[self.slot]
        start = default.address if self._address is None else self._address
        self._line.gsi = default.gsi if self._gsi is None else self._gsi
        self.regions.clear()
        self.doorbells.clear()
        behind = Register.QUEUE_NOTIFY + WIDTH
        self.mmio(start, Register.QUEUE_NOTIFY, self.read, self.write, width=WIDTH)
        self.mmio(start + behind, LENGTH - behind, self._read_behind, self._write_behind, width=WIDTH)
        for number in range(len(self.queues)):
            self.doorbell(start + Register.QUEUE_NOTIFY, WIDTH, number, partial(self._notified, number))

    # For subclasses.

    @property
    def config(self) -> bytes:
        """The configuration space that the driver reads."""
        raise NotImplementedError

    def write_config(self, offset: int, value: int, size: int) -> None:
        """The driver's write to the configuration space. By default it is ignored."""

    def use(self, number: int) -> bool:
        """Uses the next buffer of a queue. Returns False if no buffer can be used now. BrokenQueueError."""
        raise NotImplementedError

    def queue_ended(self, number: int) -> None:
        """Called when the device loses a queue's buffers. Override this to forget buffers in progress."""

    # The state.

    def _power_on(self) -> None:
        self.status = Status(0)
        self.driver_features = 0
        self.interrupt_status = Interrupt(0)
        self._config_changed = False
        self._device_features_sel = self._driver_features_sel = self._queue_sel = 0

    def _reset(self) -> None:
        """2.4."""
        self._power_on()
        self._end_queues(reset=True)
        self._drive()

    def reset(self) -> None:
        """The VM is reset."""
        self._reset()
        self._keep()

    @property
    def ram(self) -> Ram:
        """The guest's memory."""
        assert self._ram is not None
        return self._ram

    def started(self) -> None:
        """Continues where an earlier process of this device ended, if the guest's machine has kept its state."""
        self._ram = self.host.memory()
        page = self._ram.notes(self.slot)
        self._notes = None if page is None else Notes(page)
        self._published = None if page is None else Published(page)
        kept = None if self._notes is None else self._notes.read()
        if kept is not None:
            try:
                self.restore(kept)
                if self.status and not self.status & (Status.DRIVER_OK | NOT_LIVE):
                    self.needs_reset("its process ended during the driver's set-up, and a write may have been lost")
                return
            except InvalidArgument as error:
                log.warning("%s: the state that an earlier process kept can't be used: %s", self.name, error.message)
        self.restored()

    def check_state(self, values: Mapping[str, Any]) -> None:
        if len(values["queues"]) != len(self.queues):
            raise refused("state.queues", len(values["queues"]), f"{len(self.queues)} queues")
        if values["driver_features"] & ~self.features and Status.FEATURES_OK in values["status"]:
            raise refused("state.driver_features", values["driver_features"], "features that the device offers")

    def restored(self) -> None:
        """Continues with the queues. Meanwhile the driver may have notified the device, or missed an interrupt."""
        if self._ram is None:  # before the device runs
            return
        if self.is_live:
            self._map_queues()
            # The configuration may have changed, too: the disk's file may have grown, for example.
            self.config_generation = self.config_generation + 1 & WORD
            self.interrupt_status |= Interrupt.USED_BUFFER | Interrupt.CONFIGURATION
            self._use_all()
        self._drive()
        self._keep()

    def _keep(self) -> None:
        """Keeps the state for the device's next process, if the guest's machine keeps notes."""
        if self._notes is not None:
            self._notes.write(self.save())

    # Interrupts.

    def _drive(self) -> None:
        if self._published is not None:
            self._published.put(self.interrupt_status, at_slot=self._address is None)
        self._line.set(self.interrupt_status != 0)

    def _interrupt(self, cause: Interrupt) -> None:
        self.interrupt_status |= cause
        self._drive()

    def config_changes(self) -> None:
        """The configuration has changed: 4.2.2.1, 3.3."""
        self.config_generation = self.config_generation + 1 & WORD
        if Status.SUSPEND in self.status:
            self._config_changed = True  # 3.5.2: the notification comes when the device resumes
        elif Status.DRIVER_OK in self.status:
            self._interrupt(Interrupt.CONFIGURATION)
        self._keep()

    def needs_reset(self, why: str) -> None:
        """Stops the device until its driver resets it: 2.1.2."""
        if self._complaints:  # a guest can cause any number of them
            self._complaints -= 1
            log.warning("%s needs a reset by its driver: %s", self.name, why)
        self.broken = why
        self.status |= Status.DEVICE_NEEDS_RESET
        self._end_queues()
        self._interrupt(Interrupt.CONFIGURATION)
        self._keep()

    # Queues.

    @property
    def is_live(self) -> bool:
        """Whether buffers may be used: 2.1.2, 3.2."""
        return Status.DRIVER_OK in self.status and not self.status & NOT_LIVE

    def _map_queues(self) -> None:
        for queue in self.queues:
            if queue.ready and not queue.is_live:
                self._map_queue(queue)
        self._keep()  # before a buffer is used: otherwise the next process would begin with the first buffer again

    def _map_queue(self, queue: Virtqueue) -> None:
        try:
            queue.begin(
                self.ram,
                event_idx=bool(self.driver_features & Feature.EVENT_IDX),
                indirect=bool(self.driver_features & Feature.INDIRECT_DESC),
            )
        except BrokenQueueError as error:
            self.needs_reset(str(error))

    def _end_queues(self, *, reset: bool = False) -> None:
        for number in range(len(self.queues)):
            self._end_queue(number, reset=reset)
        self._go_on.stop()

    def _end_queue(self, number: int, *, reset: bool = False) -> None:
        queue = self.queues[number]
        (queue.reset if reset else queue.end)()
        self.queue_ended(number)

    def _notified(self, number: int) -> None:
        """QueueNotify was written."""
        if self.is_live:
            self.look(number)
        elif not self.status & (Status.DRIVER_OK | NOT_LIVE):
            # 3.1.1: a driver notifies only after DRIVER_OK. So the driver has set up an earlier process of this device,
            # and the state of that process was not kept.
            self.needs_reset("its driver has set up an earlier process, whose state was lost")

    def _use_all(self) -> None:
        for number in range(len(self.queues)):
            self.look(number)

    def look(self, number: int) -> None:
        """Uses buffers of a queue. If there are more than MOST_AT_ONCE, a timer continues in another turn."""
        queue = self.queues[number]
        if not self.is_live or not queue.is_live:
            return
        try:
            queue.wants_notifications(False)
            for _ in range(MOST_AT_ONCE):
                if self._published is not None and self._published.is_replaced:
                    return
                # Look once more: the driver may have added a buffer before it saw that the device wants notifications.
                if not self.use(number) and not (queue.wants_notifications(True) and self.use(number)):
                    break
            else:
                self._go_on.start(0)
        except BrokenQueueError as error:
            self.needs_reset(str(error))
            return
        if queue.is_notification_due():
            self._interrupt(Interrupt.USED_BUFFER)

    # Registers.

    def _read_behind(self, offset: int, size: int) -> int:
        return self.read(offset + Register.QUEUE_NOTIFY + WIDTH, size)

    def _write_behind(self, offset: int, value: int, size: int) -> None:
        self.write(offset + Register.QUEUE_NOTIFY + WIDTH, value, size)

    def read(self, offset: int, size: int) -> int:
        """A vCPU's load. An access that 4.2.2.2 does not allow reads 0."""
        if offset >= Register.CONFIG:
            at = offset - Register.CONFIG
            return int.from_bytes(self.config[at : at + size], "little")
        return self._read(offset) if size == WIDTH and not offset % WIDTH else 0

    def _read(self, offset: int) -> int:
        queue = self._selected
        match offset:
            case Register.MAGIC_VALUE:
                return MAGIC
            case Register.VERSION:
                return VERSION
            case Register.DEVICE_ID:
                return self.device_id
            case Register.VENDOR_ID:
                return VENDOR
            case Register.DEVICE_FEATURES:
                return self.features >> 32 * self._device_features_sel & WORD if self._device_features_sel < 4 else 0
            case Register.QUEUE_SIZE_MAX:
                return 0 if queue is None else queue.most
            case Register.QUEUE_READY:
                return 0 if queue is None else int(queue.ready)
            case Register.INTERRUPT_STATUS:
                return self.interrupt_status
            case Register.STATUS:
                return self.status
            case Register.SHM_LEN_LOW | Register.SHM_LEN_HIGH | Register.SHM_BASE_LOW | Register.SHM_BASE_HIGH:
                return WORD  # there is no such region
            case Register.CONFIG_GENERATION:
                return self.config_generation
            case _:  # QueueReset reads 0, too: a queue's reset is over at once.
                return 0

    @property
    def _selected(self) -> Virtqueue | None:
        return self.queues[self._queue_sel] if self._queue_sel < len(self.queues) else None

    def write(self, offset: int, value: int, size: int) -> None:
        """A vCPU's store. An access that 4.2.2.2 does not allow is ignored."""
        if offset >= Register.CONFIG:
            if Status.SUSPEND not in self.status:
                self.write_config(offset - Register.CONFIG, value, size)
        elif size == WIDTH and not offset % WIDTH:
            self._write(offset, value)
            if offset != Register.INTERRUPT_ACK:
                self._keep()

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case Register.DEVICE_FEATURES_SEL:
                self._device_features_sel = value
            case Register.DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case Register.DRIVER_FEATURES if self._driver_features_sel < 4 and Status.FEATURES_OK not in self.status:
                shift = 32 * self._driver_features_sel
                self.driver_features = self.driver_features & ~(WORD << shift) | value << shift
            case Register.QUEUE_SEL:
                self._queue_sel = value
            case Register.INTERRUPT_ACK:
                self._acknowledge(value)
            case Register.STATUS:
                self._write_status(value)
            case _ if self._selected is not None:
                self._write_queue(self._selected, offset, value)
            case _:
                pass

    def _acknowledge(self, value: int) -> None:
        self.interrupt_status &= ~Interrupt(value & 3)
        # If the line's pin is edge-triggered, a cause that is still pending needs a new edge.
        self._line.set(False)
        self._drive()

    def _write_status(self, value: int) -> None:
        """2.1, 3.1, and 3.5 of draft 1.4. The driver only sets bits; only the device clears single bits."""
        if not value:
            self._reset()
            return
        new = Status(value & 0xFF) & ~self.status
        self.status |= new & (Status.ACKNOWLEDGE | Status.DRIVER | Status.FAILED)
        if Status.FEATURES_OK in new and self._accepts_features():
            self.status |= Status.FEATURES_OK
        if Status.FEATURES_OK not in self.status:
            return
        if Status.DRIVER_OK in new:
            self._go_live()
        elif Status.SUSPEND in new and Status.DRIVER_OK in self.status and self.driver_features & Feature.SUSPEND:
            # No buffer is in progress: the device uses one at a time, to its end.
            self.status = self.status & ~Status.DRIVER_OK | Status.SUSPEND

    def _accepts_features(self) -> bool:
        """2.2.2: whether a driver's features are a valid subset."""
        return not self.driver_features & ~self.features and bool(self.driver_features & Feature.VERSION_1)

    def _go_live(self) -> None:
        self.status = self.status & ~Status.SUSPEND | Status.DRIVER_OK
        if self._config_changed:
            self._config_changed = False
            self._interrupt(Interrupt.CONFIGURATION)
        if self.is_live:
            self._map_queues()
            self._use_all()

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        """A write to a register of the selected queue. 4.2.2.2: while it is ready, most of its registers are fixed."""
        match offset:
            case Register.QUEUE_READY if value & 1 and not queue.ready:
                if Status.FEATURES_OK in self.status:
                    queue.ready = True
                    if self.is_live:
                        self._map_queue(queue)
            case Register.QUEUE_READY if not value & 1:
                queue.ready = queue.begun = False
                self._end_queue(self._queue_sel)
            case Register.QUEUE_RESET if value & 1 and self.driver_features & Feature.RING_RESET:
                self._end_queue(self._queue_sel, reset=True)
            case _ if queue.ready:
                pass
            case Register.QUEUE_SIZE:
                queue.size = value
            case Register.QUEUE_DESC_LOW | Register.QUEUE_DRIVER_LOW | Register.QUEUE_DEVICE_LOW:
                area = (offset - Register.QUEUE_DESC_LOW) // 16
                queue.areas[area] = queue.areas[area] & ~WORD | value
            case Register.QUEUE_DESC_HIGH | Register.QUEUE_DRIVER_HIGH | Register.QUEUE_DEVICE_HIGH:
                area = (offset - Register.QUEUE_DESC_HIGH) // 16
                queue.areas[area] = queue.areas[area] & WORD | value << 32
            case _:
                pass
