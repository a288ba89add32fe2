"""The floating interrupt controller (FLIC) and the interrupts of s390's vCPUs, as in Linux KVM.

These chips have not been compared with an s390 KVM. They follow the kernel's source: arch/s390/kvm/interrupt.c and
kvm-s390.c of v6.12, Documentation/virt/kvm/devices/s390_flic.rst, and selftests (tools/testing/selftests/kvm/s390/).
"""
