"""The daemon: chips (silicon), vm (chips wired together), edge (the outside), observe (those who watch)."""
