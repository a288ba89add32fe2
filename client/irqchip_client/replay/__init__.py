"""Golden traces, replayed against a daemon or against the chips alone."""
