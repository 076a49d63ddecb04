"""Keep ``python -m`` and ``torchrun -m`` from importing modules of the current folder, as ``vit3d`` does.

This module imports only what Python has loaded before: anything else could be a file of that folder.
"""

import os
import sys


def drop_current_folder() -> None:
    """Remove the current folder from ``sys.path`` if ``python -m`` imports this package to run a module of it."""
    # until runpy has located the module, the first argument is "-m"; of another one's module it is a path by now
    if sys.argv[:1] == ["-m"] and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
