"""The demo guest: a kernel in C, and its binary."""
