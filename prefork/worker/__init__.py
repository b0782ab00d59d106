"""The child process: from the fork to the exit."""
