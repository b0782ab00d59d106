"""The control room that these tests share with their neighbours."""

from tests.unit.room import folder, room

__all__ = ["folder", "room"]
