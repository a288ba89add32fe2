"""An arm64 vCPU."""
