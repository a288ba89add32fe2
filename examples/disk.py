"""A block device backed by a file, at ports 620h and GSI 11. docs/devices.md has its registers.

python -m examples.disk --image disk.img --create 2048
"""

from __future__ import annotations

from pathlib import Path

from examples.options import parser, short_errors
from irqchip_client.devices import BlockDevice, run_device
from irqchip_client.devices.block import SECTOR


def main() -> None:
    """Run the disk until SIGTERM or SIGINT."""
    options = parser(__doc__)
    options.add_argument("--image", required=True, metavar="FILE", help="the file with the disk's contents")
    options.add_argument(
        "--create", type=int, metavar="SECTORS", help="create FILE with SECTORS sectors if it does not exist"
    )
    options.add_argument("--read-only", action="store_true", help="refuse writes")
    options.add_argument("--seek", type=float, default=0.0, metavar="SECONDS", help="how long each command takes (0)")
    arguments = options.parse_args()
    with short_errors():
        if arguments.create and not Path(arguments.image).exists():
            with open(arguments.image, "wb") as image:
                image.truncate(arguments.create * SECTOR)
        block = BlockDevice(arguments.image, read_only=arguments.read_only, seek=arguments.seek)
        run_device(block, vm=arguments.vm, target=arguments.target)


if __name__ == "__main__":
    main()
