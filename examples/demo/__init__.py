"""A machine in pieces: a daemon, a vCPU and three devices, each a process of its own. Run `make demo`."""

VM = "demo"

# Where the devices are wired, as on a PC.
TIMER_GSI = 0
SERIAL_GSI = 4
DISK_GSI = 11

SECTOR = 512  # bytes
