"""Operations for a Session's batches: `session.run([ops.irq_line(4, True), ops.pio_read(0, 0x20)])`.

Each function describes a call and does nothing; it raises InvalidArgument for a number that no field holds.
"""

from ._calls import (
    Call,
    ack_interrupt,
    create_vcpu,
    get_gsi_routing,
    get_irqchip,
    get_lapic,
    irq_line,
    mmio_read,
    mmio_write,
    pio_read,
    pio_write,
    set_gsi_routing,
    set_irqchip,
    set_lapic,
    signal_msi,
)

__all__ = [
    "Call",
    "ack_interrupt",
    "create_vcpu",
    "get_gsi_routing",
    "get_irqchip",
    "get_lapic",
    "irq_line",
    "mmio_read",
    "mmio_write",
    "pio_read",
    "pio_write",
    "set_gsi_routing",
    "set_irqchip",
    "set_lapic",
    "signal_msi",
]
