"""vCPUs on the emulator Unicorn: guests without /dev/kvm, and without privileges. `pip install 'irqchipd[unicorn]'`

    with connect() as client, GuestMemory(16 << 20) as memory:
        vm = client.create_vm()
        vm.create_irqchip()
        vm.create_vcpu(0)
        memory.write(0x1000, code)
        with UnicornVcpu(memory, vm, 0) as cpu:
            cpu.start(Start(StartMode.PROTECTED, entry=0x1000))
            cpu.run()  # until cpu.stop()

docs/unicorn.md lists the features that it supports, and those that it lacks.
"""

try:
    import unicorn as _library  # The emulator: imports are absolute, and this package is irqchip_client.unicorn.
except ImportError as error:
    raise ImportError(
        f"irqchip_client.unicorn needs the emulator Unicorn ({error}): pip install 'irqchipd[unicorn]'"
    ) from error

from irqchip_client.vmm.accesses import LocalDevices
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Arm64Start, Start, StartMode

from .arm64.vcpu import Alone, UnicornArm64Vcpu
from .x86.vcpu import UnicornVcpu

__all__ = [
    "Alone",
    "Arm64Start",
    "GuestMemory",
    "LocalDevices",
    "Start",
    "StartMode",
    "UnicornArm64Vcpu",
    "UnicornVcpu",
]

del _library
