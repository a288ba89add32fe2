"""What a VMM around irqchipd is made of: guest memory, how a vCPU starts, where its accesses go, and boot images."""
