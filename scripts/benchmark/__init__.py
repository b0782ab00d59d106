"""prefork beside other servers, in the same minutes on the same machine. The verb is scripts/bench."""
