"""Networks in folders and on Hugging Face's hub, by huggingface_hub's own mixin."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from monai_vit3d.data.errors import UsageError

from .hub import load_pretrained, model_card, save_network
from .model_args import NETWORK_CLASSES, RECORD, model_args

T = TypeVar("T", bound="Pretrained")


class Pretrained(ModelHubMixin, nn.Module, library_name="monai_vit3d", tags=["monai_vit3d", "3d", "medical"]):
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, spelled as huggingface_hub spells them."""

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Return a plain instance: the mixin would keep the arguments as its config, which soon are no longer true."""
        return object.__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith(f"{__package__}."):
            NETWORK_CLASSES[cls.__name__] = cls

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return torch's state dict; its metadata hold :func:`model_args`, so that a saved one can build the network.

        Args:
            args: as of :meth:`torch.nn.Module.state_dict`.
            options: as of that method.
        """
        state = super().state_dict(*args, **options)
        metadata = getattr(state, "_metadata", {})
        with suppress(AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # taken apart by its owner
            metadata[options.get("prefix", "")[:-1]][RECORD] = model_args(self)
        return state

    @classmethod
    def from_pretrained(cls: type[T], pretrained_model_name_or_path: str | Path, **options: Any) -> T:  # type: ignore[override]
        """Load the network in a folder of :meth:`save_pretrained`, or in a repository of the hub that holds one.

        Args:
            pretrained_model_name_or_path: the folder, a file of ``save_backbone``, or the hub's ``"owner/name"``.
            options: ``img_size`` and ``patch_size`` (positions and kernel are resampled; rotary positions that count
                patches, ``unit="patch"`` without a reference, take no other patch), ``in_chans`` (the kernel is
                adapted), ``num_classes`` and ``global_pool`` (a new head, unless they are the file's), ``device``,
                ``dtype`` (the file's by default; torch's or its name), and any other keyword of the constructor that
                leaves the weights' meaning alone, as drop rates; for the hub also ``revision``, ``token``,
                ``cache_dir``, ``force_download``, ``local_files_only``.

        Returns:
            The network, in evaluation mode.

        Raises:
            WeightsError: nothing there, or files that are cut off, altered, or of two architectures.
            UsageError: unknown options, or such as would change what the weights compute.

        Example:
            >>> net = VisionTransformer3D.from_pretrained("folder", img_size=(64, 64, 32), num_classes=3)
        """
        return load_pretrained(pretrained_model_name_or_path, factory=cls, **options)  # type: ignore[type-var]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        license: str | None = None,
        tags: tuple[str, ...] = (),
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """Write config.json, model.safetensors (with the head) and README.md, all of them or nothing.

        A README.md that people wrote or changed stays; one that was written here is written anew, with this call's
        ``license`` and ``tags``. Adapters are written merged; the network keeps them.

        Args:
            save_directory: the folder; it is made if it is not there.
            license: of the weights, by the hub's word for it, as ``"apache-2.0"``, for the model card.
            tags: more tags for the model card.
            push_to_hub: upload afterwards.
            repo_id: where to; None takes the folder's name.
            options: further ones of :meth:`push_to_hub`.

        Returns:
            What the upload returned; None without one.

        Raises:
            UsageError: layers that no file can name, or options without ``push_to_hub``.
        """
        card = {"license": license, "tags": tuple(tags), **(options.pop("model_card_kwargs", None) or {})}
        if options.pop("config", None) is not None:  # the mixin hands on one of None
            raise UsageError("config=...: config.json says what the network is. Leave it out.")
        save_network(self, save_directory, card=card, unknown=() if push_to_hub else options)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(save_directory).name, model_card_kwargs=card, **options)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, license: str | None = None, tags: tuple[str, ...] = (), **options: Any
    ) -> str:
        """Upload what :meth:`save_pretrained` writes, as one commit.

        Args:
            repo_id: the hub's ``"owner/name"``; the repository is made if it is not there.
            license: as for :meth:`save_pretrained`.
            tags: as for :meth:`save_pretrained`.
            options: of ``ModelHubMixin.push_to_hub``: ``private``, ``token``, ``branch``, ``create_pr``,
                ``commit_message``, and so on.

        Returns:
            The commit's address.
        """
        card = {"license": license, "tags": tuple(tags), **(options.pop("model_card_kwargs", None) or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=card, **options))

    def generate_model_card(self, **options: Any) -> ModelCard:  # type: ignore[override]
        """Return the model card that :meth:`save_pretrained` writes.

        Args:
            options: ``license`` and ``tags``.
        """
        return model_card(self, **options)
