"""The GICv2 and the GICv3 of an arm64 VM, as Linux KVM has them (arch/arm64/kvm/vgic).

An interrupt reaches a guest in two steps, as in the kernel: the distributor's heart puts what is pending into list
registers, and the virtual CPU interface, which is hardware, gives the guest what is in them.
"""
