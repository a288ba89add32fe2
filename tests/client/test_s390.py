"""s390's values: the SDK's interrupts are the daemon's."""

from __future__ import annotations

import struct

import pytest

from irqchip_client import FlicGroup, InterruptMasks, S390Irq, S390IrqType
from irqchip_client.s390 import adapter_mask, adapter_registration, ais_mode, irqs_of
from irqchipd.chips.s390 import adapters, flic, irq
from irqchipd.chips.s390.pending import Masks
from tests.vm.s390.machine import adapter_irq


@pytest.mark.parametrize("kind", S390IrqType)
def test_the_types_and_their_fields_are_the_daemons(kind: S390IrqType) -> None:
    names = list(S390Irq.make(kind).fields)
    made = S390Irq.make(kind, **{name: number for number, name in enumerate(names, 1)})
    assert made.type is kind
    assert list(made.fields.values()) == list(range(1, len(names) + 1))
    assert irq.pack(irq.unpack(made.kvm_struct)) == made.kvm_struct
    assert irq.NAMES[kind]


def test_io_and_adapter_interrupts_are_the_daemons() -> None:
    assert irq.unpack(S390Irq.adapter(3).kvm_struct) == adapter_irq(3)
    made = S390Irq.io(0x0001_0005, 6, 7)
    assert irq.unpack(made.kvm_struct) == irq.Irq(5, irq.Io(1, 5, 7, 6 << 27))
    assert (made.isc, S390Irq.adapter(3).isc, S390Irq.make(S390IrqType.RESTART).isc) == (6, 3, None)


def test_an_interrupt_reads_well() -> None:
    assert str(S390Irq.adapter(3)) == "adapter, ISC 3, io_int_word 0x98000000"
    assert str(S390Irq.make(S390IrqType.EMERGENCY, code=1)) == "emergency, code 0x1"


def test_arrays() -> None:
    irqs = [S390Irq.adapter(1), S390Irq.make(S390IrqType.SERVICE, ext_params=0x1000)]
    assert irqs_of(b"".join(one.kvm_struct for one in irqs)) == irqs


def test_wrong_interrupts() -> None:
    with pytest.raises(ValueError, match="its fields are: code"):
        S390Irq.make(S390IrqType.EMERGENCY, cpu=1)
    with pytest.raises(ValueError, match="no interrupt of type"):
        S390Irq.make(0xFFFF_FFFF)
    with pytest.raises(ValueError, match="72 bytes"):
        S390Irq(b"")
    with pytest.raises(ValueError, match="use 0 to 7"):
        S390Irq.adapter(8)


def test_masks_are_those_of_a_reset_at_first() -> None:
    first, daemons = InterruptMasks(), Masks()
    assert (first.psw_mask, first.cr0, first.cr6, first.cr14) == (daemons.psw, daemons.cr0, daemons.cr6, daemons.cr14)
    assert InterruptMasks.from_proto(InterruptMasks.all().to_proto()) == InterruptMasks.all()


def test_the_devices_structures_are_the_daemons() -> None:
    assert {group.name: int(group) for group in FlicGroup} == {
        name: number for name, number in vars(flic.Group).items() if name.isupper()
    }
    registration = adapters.register_request(1, 3, maskable=True, swap=True, flags=1)
    assert adapter_registration(1, 3, maskable=True, swap=True, suppressible=True) == registration
    assert adapter_mask(5, True) == adapters.modify_request(5, adapters.Request.MASK, mask=1)
    assert ais_mode(3, True) == flic.ais_request(3, flic.AisMode.SINGLE) == struct.pack(">BBH", 3, 0, 1)
