"""An s390 VM: the FLIC, adapters, and vCPUs with their masks.

No KVM of this kind has judged it: irqchipd.chips.s390 names the sources.
"""
