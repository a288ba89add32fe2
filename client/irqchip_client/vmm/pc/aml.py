"""ACPI Machine Language, as far as a PC's devices need it. ACPI Specification 6.5, chapter 20; resources: 6.4.

Each function returns the bytes of a term. A name is one segment, such as "COM1", or "\\\\_SB" from the root on.
"""

from __future__ import annotations

import struct

# 20.3, AML byte stream byte values.
NAME, BYTE, WORD, DWORD, STRING, QWORD = 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
SCOPE, BUFFER, PACKAGE, EXTENDED, DEVICE = 0x10, 0x11, 0x12, 0x5B, 0x82
# 6.4.2 and 6.4.3: resource data types.
IRQ, IO_PORT, END_TAG, MEMORY32_FIXED, EXTENDED_INTERRUPT = 0x22, 0x47, 0x79, 0x86, 0x89
DECODES_16_BITS, WRITABLE = 1, 1
CONSUMER = 1  # the device uses the interrupt; level-triggered, active high and exclusive are 0


def name(segment: str, value: bytes) -> bytes:
    """DefName: an object with a name."""
    return bytes([NAME]) + _name(segment) + value


def scope(segment: str, *terms: bytes) -> bytes:
    """DefScope: terms within an object that exists."""
    return bytes([SCOPE]) + _sized(_name(segment) + b"".join(terms))


def device(segment: str, *terms: bytes) -> bytes:
    """DefDevice."""
    return bytes([EXTENDED, DEVICE]) + _sized(_name(segment) + b"".join(terms))


def integer(value: int) -> bytes:
    """The shortest form of a number of at most 64 bits."""
    if value < 2:
        return bytes([value])
    for prefix, form in ((BYTE, "<B"), (WORD, "<H"), (DWORD, "<I")):
        if value < 1 << 8 * struct.calcsize(form):
            return bytes([prefix]) + struct.pack(form, value)
    return bytes([QWORD]) + struct.pack("<Q", value)


def string(text: str) -> bytes:
    """ASCII characters."""
    return bytes([STRING]) + text.encode("ascii") + b"\0"


def package(*values: bytes) -> bytes:
    """DefPackage: at most 255 values."""
    return bytes([PACKAGE]) + _sized(bytes([len(values)]) + b"".join(values))


def eisa_id(text: str) -> bytes:
    """A plug and play id, such as PNP0501, as a number. 19.6.37: five bits a letter, most significant byte first."""
    letters = [ord(letter) - ord("@") for letter in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return integer(int.from_bytes(number.to_bytes(4, "big"), "little"))


# Resources.


def resources(*descriptors: bytes) -> bytes:
    """A resource template: a buffer of descriptors. An end tag whose checksum is 0 is valid."""
    data = b"".join(descriptors) + bytes([END_TAG, 0])
    return bytes([BUFFER]) + _sized(integer(len(data)) + data)


def ports(start: int, length: int) -> bytes:
    """6.4.2.5: at most 255 ports, which decode 16 bits."""
    return struct.pack("<2B2H2B", IO_PORT, DECODES_16_BITS, start, start, 1, length)


def isa_interrupt(irq: int) -> bytes:
    """6.4.2.1, without flags: an ISA interrupt, edge-triggered and active high."""
    return struct.pack("<BH", IRQ, 1 << irq)


def memory(start: int, length: int) -> bytes:
    """6.4.3.4: a fixed range of addresses below 4 GiB, with registers that can be written."""
    return struct.pack("<BHB2I", MEMORY32_FIXED, 9, WRITABLE, start, length)


def interrupt(pin: int) -> bytes:
    """6.4.3.6: an IOAPIC's pin, level-triggered and active high, which no other device shares."""
    return struct.pack("<BH2BI", EXTENDED_INTERRUPT, 6, CONSUMER, 1, pin)


def _name(text: str) -> bytes:
    """20.2.2: a segment of four characters, filled up by underscores, perhaps from the root on."""
    root = b"\\" if text.startswith("\\") else b""
    return root + text.lstrip("\\").encode("ascii").ljust(4, b"_")


def _sized(body: bytes) -> bytes:
    """20.2.4, PkgLength: the length of itself and of the body, in 1 byte up to 63, or else in 2 to 4."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for more in (1, 2, 3):
        length = len(body) + 1 + more
        if length < 1 << 4 + 8 * more:
            return bytes([more << 6 | length & 0xF]) + (length >> 4).to_bytes(more, "little") + body
    raise ValueError(f"{len(body)} bytes are too long for an AML package")
