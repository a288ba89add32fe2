"""vCPUs on Linux KVM, in VMs without an in-kernel irqchip: their interrupt controllers are irqchipd's.

    with connect() as client, GuestMemory(16 << 20) as memory, KvmVm(memory) as kvm:
        vm = client.create_vm()
        vm.create_irqchip()
        vm.create_vcpu(0)
        memory.write(0x1000, code)
        with KvmVcpu(kvm, vm, 0) as cpu:
            cpu.start(Start(StartMode.PROTECTED, entry=0x1000))
            cpu.run()  # until cpu.stop()

x86-64 and Linux 5.10 or newer; why_not() says what is missing.

CPUID shows a local APIC and x2APIC, and hides KVM's paravirtual leaves, the TSC deadline timer and performance
counters, which need an APIC of KVM's own. An APIC whose page is moved onto RAM is not seen there: the RAM is. Where a
KVM does not exit for a lower CR8, as one without hardware's help may not, it counts from the next exit on. While a vCPU
runs, SIGRTMIN is blocked in its thread, and used to wake it; no handler is installed, so that any thread may run one.
"""

from irqchip_client.vmm.accesses import LocalDevices
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .vcpu import KvmVcpu
from .vm import KvmVm, why_not

__all__ = ["GuestMemory", "KvmVcpu", "KvmVm", "LocalDevices", "Start", "StartMode", "why_not"]
