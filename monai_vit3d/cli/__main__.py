"""``python -m monai_vit3d.cli`` is ``vit3d``."""

from .command import run_process

if __name__ == "__main__":
    run_process()
