"""What a PC's firmware leaves in memory for a kernel: tables of the machine around the chips."""
