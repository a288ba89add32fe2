"""Silicon: one file a chip, each a pure state machine.

A chip does no I/O, keeps no time, takes no lock, and imports the standard library and its neighbours here only.
What it has to tell comes out through the small wire interface at the top of its file.
"""
