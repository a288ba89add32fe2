"""A US keyboard: the scan codes of its keys, and the keys for every character."""

from __future__ import annotations

EXTENDED = 0xE000  # the key's code follows an E0

# Scan code set 2, the keyboard's own. A key's name is the text on it, without Shift.
KEYS: dict[str, int] = {
    **dict(zip("`1234567890-=", bytes.fromhex("0e 16 1e 26 25 2e 36 3d 3e 46 45 4e 55"), strict=True)),
    **dict(zip("qwertyuiop[]\\", bytes.fromhex("15 1d 24 2d 2c 35 3c 43 44 4d 54 5b 5d"), strict=True)),
    **dict(zip("asdfghjkl;'", bytes.fromhex("1c 1b 23 2b 34 33 3b 42 4b 4c 52"), strict=True)),
    **dict(zip("zxcvbnm,./", bytes.fromhex("1a 22 21 2a 32 31 3a 41 49 4a"), strict=True)),
    "escape": 0x76,
    "backspace": 0x66,
    "tab": 0x0D,
    "enter": 0x5A,
    "space": 0x29,
    "caps lock": 0x58,
    "left shift": 0x12,
    "right shift": 0x59,
    "left control": 0x14,
    "right control": EXTENDED | 0x14,
    "left alt": 0x11,
    "right alt": EXTENDED | 0x11,
    "left meta": EXTENDED | 0x1F,
    "right meta": EXTENDED | 0x27,
    "menu": EXTENDED | 0x2F,
    "f1": 0x05,
    "f2": 0x06,
    "f3": 0x04,
    "f4": 0x0C,
    "f5": 0x03,
    "f6": 0x0B,
    "f7": 0x83,
    "f8": 0x0A,
    "f9": 0x01,
    "f10": 0x09,
    "f11": 0x78,
    "f12": 0x07,
    "print screen": EXTENDED | 0x7C,
    "scroll lock": 0x7E,
    "insert": EXTENDED | 0x70,
    "home": EXTENDED | 0x6C,
    "page up": EXTENDED | 0x7D,
    "delete": EXTENDED | 0x71,
    "end": EXTENDED | 0x69,
    "page down": EXTENDED | 0x7A,
    "up": EXTENDED | 0x75,
    "left": EXTENDED | 0x6B,
    "down": EXTENDED | 0x72,
    "right": EXTENDED | 0x74,
    "num lock": 0x77,
    "keypad /": EXTENDED | 0x4A,
    "keypad *": 0x7C,
    "keypad -": 0x7B,
    "keypad +": 0x79,
    "keypad enter": EXTENDED | 0x5A,
    "keypad .": 0x71,
    **{f"keypad {digit}": code for digit, code in enumerate(bytes.fromhex("70 69 72 7a 6b 73 74 6c 75 7d"))},
}

# The controller's translation of set 2 into set 1, the PC's. Bytes from 80h on stay, except two.
SET_1 = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59 65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d 69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61 6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f 52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))


def strokes(character: str) -> tuple[str, ...]:
    """The keys of a character, in the order of pressing; empty if the keyboard lacks the character."""
    if character in _NAMED:
        return (_NAMED[character],)
    if character in _SHIFTED:
        return "left shift", _SHIFTED[character]
    if "\x01" <= character <= "\x1a":
        return "left control", chr(ord(character) | 0x60)
    return (character,) if len(character) == 1 and character in KEYS else ()


_NAMED = {
    " ": "space",
    "\n": "enter",
    "\r": "enter",
    "\t": "tab",
    "\x08": "backspace",
    "\x7f": "backspace",
    "\x1b": "escape",
}
_SHIFTED = {
    **{chr(letter - 0x20): chr(letter) for letter in range(ord("a"), ord("z") + 1)},
    **dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True)),
}
