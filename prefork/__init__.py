"""What the author of a handler imports: the version and the worker that the code runs in."""

from prefork.handlers.context import Worker, current

__version__ = "0.1.0"
__all__ = ["Worker", "__version__", "current"]
