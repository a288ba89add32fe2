"""The daemon: chips (silicon), vm (chips wired together), edge (the outside), observe (those who watch)."""

from irqchip import builds

builds.choose(__path__)
