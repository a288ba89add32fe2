"""The GICv2 and the GICv3 of an arm64 VM, as Linux KVM has them (arch/arm64/kvm/vgic).

An interrupt reaches a guest in two steps, as in the kernel: the distributor puts pending interrupts into list
registers, and the virtual CPU interface, which is hardware, passes them to the guest.
"""
