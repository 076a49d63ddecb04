"""``python -m`` and ``torchrun -m`` let Python look for modules in the current folder first; ``vit3d`` does not.

This module imports only what Python has loaded before: anything else could be a file of that folder.
"""

import os
import sys


def drop_current_folder() -> None:
    """Take the current folder off ``sys.path`` if ``python -m`` is importing this package to run a module of it."""
    # until runpy has located the module, the first argument is "-m"; of another one's module it is a path by now
    if sys.argv[:1] == ["-m"] and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
