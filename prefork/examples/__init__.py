"""Small handlers that the files in conf/ run."""
