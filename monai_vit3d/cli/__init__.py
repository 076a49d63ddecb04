"""``vit3d``, the command: thin; each verb calls a function that Python users can call, too."""

from .command import main as main
from .command import run_process as run_process
