"""vCPUs on Linux KVM, in VMs without an in-kernel irqchip. irqchipd has their interrupt controllers.

    with connect() as client, GuestMemory(16 << 20) as memory, KvmVm(memory) as kvm:
        vm = client.create_vm(tsc_khz=guest_tsc_khz())
        vm.create_irqchip()
        vm.create_vcpu(0)
        memory.write(0x1000, code)
        with KvmVcpu(kvm, vm, 0) as cpu:
            cpu.start(Start(StartMode.PROTECTED, entry=0x1000))
            cpu.run()  # until cpu.stop()

This needs x86-64 and Linux 5.10 or newer; why_not() returns the reason if it can't run.

CPUID shows one package, with a core for each vCPU that irqchipd's VM has when the KvmVcpu is made: create all vCPUs in
irqchipd's VM before the first KvmVcpu. CPUID shows a local APIC, x2APIC and, of KVM's paravirtual features, the clock.
It shows the TSC-deadline timer if the VM's TSC has the frequency of the guest's, guest_tsc_khz(). It hides performance
counters and the paravirtual features that need KVM's own APIC.

If a guest moves its APIC's page onto RAM, it sees the RAM there. Some KVMs without hardware support do not exit when
the guest lowers CR8; then the new CR8 counts from the next exit on. While a vCPU runs, its thread blocks SIGRTMIN,
which another thread sends to wake it. No handler is installed, so a vCPU may run on any thread.
"""

from irqchip_client.vmm.accesses import LocalDevices
from irqchip_client.vmm.memory import GuestMemory
from irqchip_client.vmm.start import Start, StartMode

from .tsc import guest_tsc_khz
from .vcpu import KvmVcpu
from .vm import KvmVm, why_not

__all__ = ["GuestMemory", "KvmVcpu", "KvmVm", "LocalDevices", "Start", "StartMode", "guest_tsc_khz", "why_not"]
