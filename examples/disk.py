"""A block device backed by a file, at ports 620h and GSI 11. docs/devices.md has its registers.

python -m examples.disk --image disk.img --create 2048
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.options import parser, short_errors
from irqchip_client.devices import BlockDevice, run_device
from irqchip_client.devices.image_file import SECTOR
from irqchip_client.vmm.arm64 import DISK, DISK_LINE


def main() -> None:
    """Run the disk until SIGTERM or SIGINT."""
    options = parser(__doc__)
    options.add_argument("--image", required=True, metavar="FILE", help="the file with the disk's contents")
    options.add_argument(
        "--create", type=int, metavar="SECTORS", help="create FILE with SECTORS sectors if it does not exist"
    )
    options.add_argument("--read-only", action="store_true", help="refuse writes")
    options.add_argument("--seek", type=float, default=0.0, metavar="SECONDS", help="how long each command takes (0)")
    options.add_argument("--arm64", action="store_true", help="at a000000h and SPI 2, for an arm64 guest")
    arguments = options.parse_args()
    place: dict[str, Any] = {"base": DISK, "gsi": DISK_LINE, "mmio": True} if arguments.arm64 else {}
    with short_errors():
        if arguments.create and not Path(arguments.image).exists():
            with open(arguments.image, "wb") as image:
                image.truncate(arguments.create * SECTOR)
        block = BlockDevice(arguments.image, read_only=arguments.read_only, seek=arguments.seek, **place)
        run_device(block, vm=arguments.vm, target=arguments.target)


if __name__ == "__main__":
    main()
