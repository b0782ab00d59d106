"""How people and programs talk to a running master."""
