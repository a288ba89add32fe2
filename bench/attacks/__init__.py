"""The attacks: ways in which a client or a guest may hold up others, one module per kind."""

from bench.attacks import descriptors, owners, rings, shares, timers, work
from bench.attacks.common import Attack

__all__ = ["ATTACKS", "Attack"]

ATTACKS: tuple[Attack, ...] = (
    *timers.ATTACKS,
    *work.ATTACKS,
    *rings.ATTACKS,
    *descriptors.ATTACKS,
    *shares.ATTACKS,
    *owners.ATTACKS,
)
