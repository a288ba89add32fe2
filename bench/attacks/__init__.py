"""What a client or a guest can do to hold up others, by its kind."""

from bench.attacks import descriptors, owners, shares, timers, work
from bench.attacks.common import Attack

__all__ = ["ATTACKS", "Attack"]

ATTACKS: tuple[Attack, ...] = (
    *timers.ATTACKS,
    *work.ATTACKS,
    *descriptors.ATTACKS,
    *shares.ATTACKS,
    *owners.ATTACKS,
)
