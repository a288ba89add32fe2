"""Recordings of a VM's interrupts, as waveforms (VCD) and as timelines (Perfetto)."""

from .recording import Recording

__all__ = ["Recording"]
