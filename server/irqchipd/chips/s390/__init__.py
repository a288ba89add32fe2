"""The floating interrupt controller (FLIC) and the interrupts of s390's vCPUs, as Linux KVM has them.

No KVM of this kind has judged these chips. Their source is the kernel's: arch/s390/kvm/interrupt.c and kvm-s390.c of
v6.12, Documentation/virt/kvm/devices/s390_flic.rst, and its selftests (tools/testing/selftests/kvm/s390/).
"""
