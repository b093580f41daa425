"""Values and contracts that every other row shares; the standard library only."""
