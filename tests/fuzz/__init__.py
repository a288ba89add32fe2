"""The fuzzer: messages that are nearly right, on every way into a daemon. `make fuzz` sends a million."""
