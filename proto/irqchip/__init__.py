"""The common part of the daemon and its clients: the contract, and the forms of the port's packets."""

from irqchip import builds

builds.choose(__path__)
