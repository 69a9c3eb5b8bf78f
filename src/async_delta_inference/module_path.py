"""`leave_out_working_directory`: for ``python -m``, which would import a user's ``random.py`` for Python's own."""

import os
import sys

__all__ = ["leave_out_working_directory"]


def leave_out_working_directory() -> None:
    """Take the entry off the path that ``python -m`` puts first, as it is not there for installed commands.

    What a user puts on the path (``PYTHONPATH=.``) stays.
    """
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
