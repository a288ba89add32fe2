"""Silicon: one file a chip, each a pure state machine.

A chip does no I/O, keeps no time, takes no lock, and imports the standard library and its neighbours here only.
What a chip reports goes out through the small interface of wires at the top of its file.
"""
