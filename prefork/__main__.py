"""``python -m prefork`` is the command ``prefork``."""

from prefork.cli.app import main

main()
