"""The guest's part: it initialises its PICs."""

from irqchip_client import Machine, aio, ops

IRQ_BASE = 0x30

# ICW1 to ICW4 of both PICs, with vectors from IRQ_BASE, and nothing masked.
INIT = [
    ops.pio_write(0, port, data)
    for port, data in [
        *[(0x20, 0x11), (0x21, IRQ_BASE), (0x21, 4), (0x21, 1), (0x21, 0)],
        *[(0xA0, 0x11), (0xA1, IRQ_BASE + 8), (0xA1, 2), (0xA1, 1), (0xA1, 0)],
    ]
]
EOI = ops.pio_write(0, 0x20, 0x20)


def init_pics(machine: Machine) -> None:
    machine._run(INIT)


async def init_pics_async(machine: aio.Machine) -> None:
    await machine._run(INIT)
