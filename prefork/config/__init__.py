"""WANTED: what the configuration says. No effects: never binds, forks or imports an application."""
