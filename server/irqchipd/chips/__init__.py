"""Silicon: one file a chip, each a pure state machine.

A chip does no I/O, keeps no time, takes no lock, and imports only the standard library and its neighbours here.
A chip reports through the small interface of wires at the top of its file.
"""
