"""The kinds of work that a pool can run, one file each."""
