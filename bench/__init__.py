"""The benchmarks: each figure is a ratio against something measured beside it."""
