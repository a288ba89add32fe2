"""Handles those exits of KVM_RUN that are a guest's accesses."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, cast

from irqchip_client import ops
from irqchip_client._model import Access
from irqchip_client.vmm.accesses import Accesses, LocalDevices, LocalStrings

from .apic import X2APIC_ICR, Apic
from .ioctls import QWORD, Run

if TYPE_CHECKING:
    from irqchip_client import Session

READ = 0  # kvm_run.io.direction
_WHOLE = frozenset((1, 2, 4, 8))  # lengths of an access that comes in one part
_unpack_mmio, _pack_quad = Run.MMIO.unpack_from, QWORD.pack_into
MAX_BATCH = 256  # operations of a string; fewer if the daemon's limit is lower


class Exits:
    """The exits of a vCPU: each method serves one kind.

    wrote      set when the guest stores something: it may have interrupted itself
    signalled  set when the guest may have sent itself an NMI or INIT
    """

    def __init__(
        self,
        run: mmap.mmap,
        session: Session,
        vcpu: int,
        accesses: Accesses,
        local: LocalDevices | None,
        apic: Apic,
    ) -> None:
        self.wrote = False
        self.signalled = False
        self._run = run
        self._session = session
        self._id = vcpu
        self._local = local
        self._strings = local if isinstance(local, LocalStrings) else None
        self._accesses = accesses
        self._apic = apic
        self._batch = min(MAX_BATCH, session.max_operations)

    def io(self) -> None:
        """IN, OUT, INS, OUTS."""
        run = self._run
        direction, size, port, count, at = Run.IO.unpack_from(run, Run.UNION)
        if direction == READ:
            if count == 1:
                run[at : at + size] = self._accesses.pio_read(port, size).to_bytes(size, "little")
            else:
                run[at : at + size * count] = self._read_string(port, size, count)
            return
        self.wrote = True
        if count == 1:
            self._accesses.pio_write(port, int.from_bytes(run[at : at + size], "little"), size)
        else:
            self._write_string(port, size, run[at : at + size * count])

    def mmio(self) -> None:
        """A load or store outside of RAM. An access across pages comes in parts, of any length."""
        run = self._run
        address, data, length, is_write = _unpack_mmio(run, Run.UNION)
        if not is_write and length in _WHOLE:
            _pack_quad(run, Run.MMIO_DATA, self._accesses.mmio_read(address, length))
            return
        done = 0
        if is_write:
            self.wrote = True
            while done < length:
                size = _largest_power(length - done)
                value = int.from_bytes(data[done : done + size], "little")
                self._accesses.mmio_write(address + done, value, size)
                self.signalled |= self._apic.mmio_written(address + done, value, size)
                done += size
            return
        value = 0
        while done < length:
            size = _largest_power(length - done)
            value |= self._accesses.mmio_read(address + done, size) << 8 * done
            done += size
        _pack_quad(run, Run.MMIO_DATA, value)

    def rdmsr(self) -> None:
        """RDMSR of an MSR that KVM lacks."""
        run = self._run
        value = self._apic.read_msr(Run.MSR.unpack_from(run, Run.MSR_AT)[0])
        run[Run.MSR_ERROR] = value is None
        QWORD.pack_into(run, Run.MSR_DATA, value or 0)

    def wrmsr(self) -> None:
        """WRMSR of an MSR that KVM lacks, or of IA32_APIC_BASE."""
        run = self._run
        msr, value = Run.MSR.unpack_from(run, Run.MSR_AT)
        run[Run.MSR_ERROR] = not self._apic.write_msr(msr, value)
        self.wrote = True
        self.signalled |= msr == X2APIC_ICR

    def _read_string(self, port: int, size: int, count: int) -> bytes:
        values: list[int] = []
        if self._strings is not None and (read := self._strings.pio_read_string(port, size, count)) is not None:
            values = read
        elif self._local is not None and (value := self._local.pio_read(port, size)) is not None:
            values.append(value)
            values.extend(self._accesses.pio_read(port, size) for _ in range(count - 1))
        else:
            call = ops.pio_read(self._id, port, size)
            while len(values) < count:
                calls = [call] * min(count - len(values), self._batch)
                all_ones = (1 << 8 * size) - 1
                for access in cast(list[Access], self._session.run(calls)):
                    values.append(access.data if access.claimed else all_ones)
        return b"".join(value.to_bytes(size, "little") for value in values)

    def _write_string(self, port: int, size: int, data: bytes) -> None:
        values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
        if self._strings is not None and self._strings.pio_write_string(port, values, size):
            return
        if self._local is not None and self._local.pio_write(port, values[0], size):
            for value in values[1:]:
                self._accesses.pio_write(port, value, size)
            return
        for first in range(0, len(values), self._batch):
            batch = values[first : first + self._batch]
            self._session.run([ops.pio_write(self._id, port, value, size) for value in batch])


def _largest_power(length: int) -> int:
    """The largest size of an access within `length` bytes: 1, 2, 4 or 8."""
    return 1 << min(length, 8).bit_length() - 1
