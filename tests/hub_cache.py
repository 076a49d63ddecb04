"""A cache of Hugging Face's hub as its own client lays it out, with files that a test makes."""

from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached_file(cache: Path, repository: str, name: str) -> Path:
    """Where a file of a repository belongs in a cache; its folders are made."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    path = root / "snapshots" / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def use_offline(monkeypatch, cache: Path) -> None:
    """What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
