"""``python -m monai_vit3d.cli`` is ``vit3d``."""

from .command import run_process

run_process()
