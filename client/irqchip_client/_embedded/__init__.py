"""A Client whose daemon is in this process. Nothing else of the SDK imports irqchipd."""
