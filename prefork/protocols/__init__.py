"""Bytes <-> meaning: no sockets, no files, no clock."""
