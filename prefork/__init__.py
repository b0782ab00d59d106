"""What the author of a handler imports: the version, the worker that the code runs in, and a server without a file."""

from typing import TYPE_CHECKING, Any

from prefork.handlers.context import Worker, current, detach

if TYPE_CHECKING:
    from prefork.program import run, serve

__version__ = "0.1.0"
__all__ = ["Worker", "__version__", "current", "detach", "run", "serve"]


def __getattr__(name: str) -> Any:
    """Return ``run`` or ``serve``: handlers that only want the worker need not have a master in their memory."""
    if name not in ("run", "serve"):
        raise AttributeError(f"module 'prefork' has no attribute {name!r}")
    from prefork import program

    return getattr(program, name)
