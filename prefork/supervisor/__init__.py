"""DECIDES: pure bookkeeping, (event, now) -> actions. Chance and time come in as arguments."""
