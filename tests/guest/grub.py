"""A program for the machine of tests/nested: boots GRUB on SeaBIOS, and types commands into its shell.

python -m tests.guest.grub FIRMWARE FLOPPY
"""

from __future__ import annotations

import sys

from tests.cli.console import PATIENCE, Console


def main() -> int:
    """Show the memory map and turn the machine off; returns the run's status."""
    firmware, floppy = sys.argv[1:]
    options = ("--cpu", "kvm", "--memory", "64", "--fw-cfg", f"floppyimg/grub={floppy}")
    console = Console("run", "--firmware", firmware, *options)
    try:
        console.expect("SeaBIOS .*Booting from Floppy.*GNU GRUB.*Use the .* keys to select")
        console.type("c")
        console.expect("grub> ")
        console.enter("lsmmap")
        print(console.expect("grub> "))
        console.enter("halt")
        return console.process.wait(PATIENCE)
    finally:
        console.close()


if __name__ == "__main__":
    sys.exit(main())
