"""An x86 vCPU."""
