"""python -m irqchip_client.cli is irqchipctl."""

from . import main

main(prog_name="irqchipctl")
