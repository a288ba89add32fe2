"""The port's short form of a batch and its answer: records of fixed length, little-endian. docs/port.md describes it.

A message in protobuf's form never begins with a 0 byte; a message in this form always does. The header is that byte,
seven unused bytes, and the batch's serial number.

An operation's record has: the number of its field in Operation; the size of an access, the source of an ack_interrupt,
whether an irq_line is without status, whether a halt's interrupts are masked, or whether a complete_access has no
answer; two unused bytes; the vCPU, the GSI or an MSI's flags; an address, port or MSR; a value: data, a level, or a
halt's timeout.

A result's record has: the operation's number, 0 for an error; the outcome: CLAIMED, FAULT, or how a halt ended; two
unused bytes; a status, an interrupt's source, a signal's kind, or an error's errno; a value: data, a vector, or the
length of an error's text. The texts follow the records, in order.

An event's record, for a region that was registered in this form, is like a request with the vCPU's operation. Its
second byte is the kind of event, and the serial is an access's number, or the number of a doorbell's writes.
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
ACCESS, DOORBELL = 1, 2  # the kinds of events

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
# The operations that have this form, and the fields of their requests that are a record's size, index, address and
# value. In register_region the size also has IS_DOORBELL for `doorbell`.
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
