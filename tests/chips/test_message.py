"""Messages, decoded from their three sources."""

from __future__ import annotations

import pytest

from irqchipd.chips.message import DeliveryMode, Message, Shorthand, from_icr, from_msi, from_redirection


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0, Message(0, DeliveryMode.FIXED, 0, logical=False, level_triggered=False)),
        (1 << 11, Message(0, DeliveryMode.FIXED, 0, logical=True, level_triggered=False)),
        (1 << 15, Message(0, DeliveryMode.FIXED, 0, logical=False, level_triggered=True)),
        (0x7 << 8, Message(0, DeliveryMode.EXTINT, 0, logical=False, level_triggered=False)),
        (0xFF, Message(0xFF, DeliveryMode.FIXED, 0, logical=False, level_triggered=False)),
        (0xAB << 56, Message(0, DeliveryMode.FIXED, 0xAB, logical=False, level_triggered=False)),
        # Pending, polarity, remote IRR, the mask and the reserved bits do not affect the message.
        (0x00FF_FFFF_FFFF_7000, Message(0, DeliveryMode.FIXED, 0, logical=False, level_triggered=False)),
    ],
)
def test_a_redirection_entry(entry: int, message: Message) -> None:
    assert from_redirection(entry) == message


@pytest.mark.parametrize(
    ("address", "data", "message"),
    [
        (0xFEE0_3000, 0x0031, Message(0x31, DeliveryMode.FIXED, 3, logical=False, level_triggered=False)),
        (0xFEEF_F004, 0x0131, Message(0x31, DeliveryMode.LOWEST_PRIORITY, 0xFF, logical=True, level_triggered=False)),
        (0xFEE0_0000, 0xC031, Message(0x31, DeliveryMode.FIXED, 0, logical=False, level_triggered=True)),
        (0xFEE0_0000, 0x4431, Message(0x31, DeliveryMode.NMI, 0, logical=False, level_triggered=False)),
        (
            0xFEE0_1008,
            0x0031,
            Message(0x31, DeliveryMode.FIXED, 1, logical=False, level_triggered=False, redirection_hint=True),
        ),
        # KVM checks neither for FEEh nor for a vector of 16 or more.
        (0x1230_0000, 0x0005, Message(0x05, DeliveryMode.FIXED, 0, logical=False, level_triggered=False)),
    ],
)
def test_an_msi(address: int, data: int, message: Message) -> None:
    assert from_msi(address, data) == message
    assert from_msi(address, data).asserted  # bit 14 of the data is ignored


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0x4031, 0xFF00_0000, Message(0x31, DeliveryMode.FIXED, 0xFF, logical=False, level_triggered=False)),
        (0x0031, 0, Message(0x31, DeliveryMode.FIXED, 0, logical=False, level_triggered=False, asserted=False)),
        (0xCD31, 0x0100_0000, Message(0x31, DeliveryMode.INIT, 1, logical=True, level_triggered=True)),
    ],
)
def test_an_interprocessor_interrupt(low: int, high: int, message: Message) -> None:
    assert from_icr(low, high) == message


@pytest.mark.parametrize(
    ("bits", "shorthand"),
    [
        (0b00, Shorthand.NONE),
        (0b01, Shorthand.SELF),
        (0b10, Shorthand.ALL_INCLUDING_SELF),
        (0b11, Shorthand.ALL_EXCLUDING_SELF),
    ],
)
def test_the_shorthands_of_an_interprocessor_interrupt(bits: int, shorthand: int) -> None:
    assert from_icr(bits << 18, 0).shorthand == shorthand


@pytest.mark.parametrize(
    ("delivery_mode", "hint", "lowest"),
    [
        (DeliveryMode.FIXED, False, False),
        (DeliveryMode.LOWEST_PRIORITY, False, True),
        (DeliveryMode.FIXED, True, True),
        (DeliveryMode.NMI, True, True),
    ],
)
def test_one_destination_is_chosen_for_lowest_priority_or_by_an_msis_hint(
    delivery_mode: int, hint: bool, lowest: bool
) -> None:
    message = Message(0x31, delivery_mode, 0, logical=True, level_triggered=False, redirection_hint=hint)
    assert message.lowest_priority == lowest
