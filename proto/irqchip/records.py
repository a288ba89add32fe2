"""The port's short form of a batch and its answer: records of fixed length, little-endian. docs/port.md describes it.

A message in protobuf's form never begins with a 0 byte; in this form it always does. The header is that byte, seven
unused ones, and the batch's serial number.

An operation's record: which one, by its field's number in Operation; the size of an access, the source of an
ack_interrupt, whether an irq_line is without status, whether a halt's interrupts are masked, or whether a
complete_access has no answer; two unused bytes; the vCPU, the GSI or an MSI's flags; an address, port or MSR; a value:
data, a level, or a halt's timeout.

A result's: the operation's number, 0 for an error; the outcome: CLAIMED, FAULT, or how a halt ended; two unused
bytes; a status, an interrupt's source, a signal's kind, or an error's errno; a value: data, a vector, or the length of
an error's text. The texts stand behind the records, in their order.

An event's, of a region that was registered in this form, is like a request of one operation, that of the vCPU; its
second byte says which event it is, and the serial is an access's number, or how often a doorbell rang.
"""

from __future__ import annotations

from struct import Struct

from irqchip.v1 import irqchip_pb2 as pb

HEADER = Struct("<B7xQ")
OPERATION = Struct("<BB2xIQQ")
RESULT = Struct("<BB2xiQ")
# A batch of one operation, and its answer.
SINGLE = Struct(HEADER.format + OPERATION.format[1:])
SINGLE_RESULT = Struct(HEADER.format + RESULT.format[1:])

EVENT = Struct("<BB6xQ" + OPERATION.format[1:])
ACCESS, DOORBELL = 1, 2  # which event

# The outcome of an operation.
CLAIMED = 1  # and of an ack_interrupt: taken
FAULT = 2
UNANSWERED = 4
# An irq_line's size: it is KVM_IRQ_LINE.
WITHOUT_STATUS = 1
# A register_region's size: the address space, and whether it is a doorbell.
IS_DOORBELL = 0x80
INTERRUPT, SIGNAL, TIMEOUT = (
    pb.HaltResponse.DESCRIPTOR.fields_by_name[name].number for name in ("interrupt", "signal", "timeout")
)

ERROR = 0
# The operations that have this form, and the fields of their requests that stand in a record: as its size, index,
# address and value. register_region has IS_DOORBELL for `doorbell` in its size as well.
FIELDS: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "irq_line": ("without_status", "gsi", None, "level"),
    "signal_msi": (None, "flags", "address", "data"),
    "pio_read": ("size", "vcpu", "port", None),
    "pio_write": ("size", "vcpu", "port", "data"),
    "mmio_read": ("size", "vcpu", "address", None),
    "mmio_write": ("size", "vcpu", "address", "data"),
    "ack_interrupt": ("source", "vcpu", None, None),
    "msr_read": (None, "vcpu", "msr", None),
    "msr_write": (None, "vcpu", "msr", "data"),
    "sysreg_read": (None, "vcpu", "sysreg", None),
    "sysreg_write": (None, "vcpu", "sysreg", "data"),
    "halt": ("interrupts_masked", "vcpu", None, "timeout_ns"),
    "register_region": ("space", None, "address", "length"),
    "complete_access": ("unanswered", None, "access", "data"),
}
NUMBERS = {name: pb.Operation.DESCRIPTOR.fields_by_name[name].number for name in FIELDS}
