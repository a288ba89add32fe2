"""The tables that a PC's firmware leaves in memory for a kernel: the machine around the chips."""
