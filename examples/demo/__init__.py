"""A PC in pieces: a daemon, a vCPU and five devices, each a process of its own: `make demo`.

And an arm64 machine: a daemon, two vCPUs and two devices: `make demo-arm`.
"""

VM = "demo"
SECTOR = 512  # bytes
SECTORS = 4096
# The clients the guest needs, by the names of their Sessions.
CLIENTS = ("16550A", "MC146818", "i8042", "block device", "debug exit")
ARM64_CLIENTS = ("16550A", "block device")
