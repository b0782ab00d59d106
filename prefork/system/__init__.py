"""Thin typed Unix: the only code that forks, execs, kills and waits."""
