"""``python -m monai_vit3d`` is ``vit3d``."""

from .cli.command import run_process

if __name__ == "__main__":
    run_process()
