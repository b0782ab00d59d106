"""An application whose loading goes as the environment says: BOOT = raise, exit, hang, or "only 0" for one slot."""

import os
import sys
import time

from web import routes  # noqa: F401 - the application, once this module has been loaded

import prefork

plan = os.environ.get("BOOT", "")
if plan == "raise":
    raise RuntimeError("the boot went wrong on purpose")
if plan == "exit":
    sys.exit(7)
if plan == "hang":
    time.sleep(1000)
if plan.startswith("only") and prefork.current().slot != int(plan.split()[1]):
    raise RuntimeError("not this slot")
