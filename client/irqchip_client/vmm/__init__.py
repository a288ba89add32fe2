"""The parts of a VMM around irqchipd: guest memory, a vCPU's start, the way of its accesses, and boot images."""
