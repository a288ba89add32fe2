"""Virtio devices over MMIO. Section numbers in this folder are of Virtual I/O Device (VIRTIO) version 1.2."""
