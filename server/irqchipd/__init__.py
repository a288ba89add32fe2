"""The daemon: chips (silicon), vm (chips wired together), edge (the outside), observe (traces and counters)."""

from irqchip import builds

builds.choose(__path__)
