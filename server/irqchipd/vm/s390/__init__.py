"""An s390 VM: the FLIC, adapters, and vCPUs with their masks.

It has not been compared with an s390 KVM: irqchipd.chips.s390 names the sources.
"""
