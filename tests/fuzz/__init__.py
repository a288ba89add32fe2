"""The fuzzer: almost valid messages over every edge of a daemon. `make fuzz` sends a million."""
