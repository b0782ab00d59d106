"""DOES: the parent process, its one loop and what it performs."""
