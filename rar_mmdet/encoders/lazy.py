"""What encoders of this package share: loaded at first use, once, on one device, in one precision."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError
from rar_mmdet.files.checkpoints import Checkpoint

__all__ = ["DTYPES", "CheckpointEncoder", "LazyEncoder", "check_crops", "check_tokenizer"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Model = TypeVar("Model")


def check_crops(crops: Tensor) -> None:
    """Refuse what are no crops.

    Raises:
        ConfigError: another shape than (R, 3, S, S), or no bytes.
    """
    if crops.ndim != 4 or crops.shape[1] != 3 or crops.dtype != torch.uint8:
        raise ConfigError(f"crops must be (R, 3, S, S) uint8 RGB, got {tuple(crops.shape)} {crops.dtype}")


def check_tokenizer(tokenizer: Any, vocab_size: int, folder: str, ends: bool = True) -> None:
    """Refuse a tokenizer of transformers whose ids a text tower of `vocab_size` would look for past its table.

    Args:
        tokenizer: it must have a padding token.
        vocab_size: of the text tower.
        folder: where it was read, for the message.
        ends: whether it must have an end token too.

    Raises:
        EncoderLoadError: it has more tokens, or lacks one that is needed.
    """
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id or tokenizer.sep_token_id if ends else 0)
    if None in special or len(tokenizer) > vocab_size:
        raise EncoderLoadError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, pad and end token {special}; the text tower knows "
            f"{vocab_size} tokens and needs {'both' if ends else 'the first'}. Get the model's complete folder anew"
        )


def _device_of(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is no device of torch; write 'cpu', 'cuda' or 'cuda:1'") from error


class LazyEncoder(ABC, Generic[Model]):
    """A plain object around a model: copied and pickled as its arguments alone, shared by threads.

    Args:
        device: where it runs when `load` is not told; `None`: the first GPU, else the CPU.
        precision: 'fp32', 'fp16' or 'bf16'; `None`: fp32 on the CPU, `gpu_precision` on a GPU.
        batch_size: crops or texts per forward pass.
    """

    gpu_precision = "fp16"

    def __init__(self, device: str | torch.device | None, precision: str | None, batch_size: int) -> None:
        if precision is not None and precision not in DTYPES:
            raise ConfigError(f"precision must be one of {', '.join(DTYPES)} or None, got {precision!r}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if device is not None:
            _device_of(device)
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self._model: Model | None = None
        self._at: torch.device | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_model", "_at", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _at=None, _lock=threading.RLock())

    @abstractmethod
    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""

    @abstractmethod
    def _read(self, device: torch.device, dtype: torch.dtype) -> Model:
        """The model from disk."""

    def load(self, device: torch.device | str | None = None) -> Self:
        """Load the model on `device`, or read it again for another one; returns self.

        Raises:
            ConfigError: there is no such kind of device.
            MissingAssetError: the files are not on this machine.
            EncoderLoadError: the files are damaged, incomplete or of another model.
        """
        wanted = _device_of(device) if device is not None else self._default_device()
        with self._lock:
            if self._model is None or self._at != wanted:
                self._expect_assets()
                self._model, self._at = self._read(wanted, DTYPES[self._precision_on(wanted)]), wanted
        return self

    def _expect_assets(self) -> None:
        missing = self.missing_assets()
        if missing:
            raise MissingAssetError("missing:\n" + "\n".join(missing))

    def _default_device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _precision_on(self, device: torch.device) -> str:
        return self.precision or (self.gpu_precision if device.type == "cuda" else "fp32")

    @property
    def _precision(self) -> str:
        """The precision it runs in; before it is loaded, on the device that `load` chooses without being told."""
        return self._precision_on(self._at or self._default_device())

    def _ready(self) -> tuple[Model, torch.device]:
        with self._lock:
            if self._model is None:
                self.load()
            assert self._model is not None
            assert self._at is not None
            return self._model, self._at

    def _unit(self, vectors: Tensor) -> Tensor:
        """Unit vectors in float32.

        Raises:
            EncoderLoadError: some are not finite, or zero.
        """
        vectors = vectors.float()
        if not torch.isfinite(vectors).all() or not vectors.any(dim=1).all():
            raise EncoderLoadError(
                f"{self!r} gave vectors that are zero or not finite; use precision='fp32', and check the weights"
            )
        return F.normalize(vectors, dim=1)


class CheckpointEncoder(LazyEncoder[Model]):
    """An encoder that is a folder of safetensors with a config.json, or a hub id whose files lie in the local cache.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of the hub id.
        device, precision, batch_size: as `LazyEncoder`.

    Raises:
        ConfigError: a value is of no use.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(device, precision, batch_size)
        self.checkpoint = Checkpoint(str(model), revision, what="encoder", error=EncoderLoadError)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.checkpoint.model!r}, precision={self.precision!r})"

    def _none_of(self, *choices: Sequence[str]) -> list[str]:
        """A line for each choice of files of which the folder has none."""
        folder = self.checkpoint.folder
        return [
            f"encoder {self.checkpoint.model!r}: no {names[0]} in {folder}; get the complete model folder"
            for names in choices
            if folder.is_dir() and not any((folder / name).is_file() for name in names)
        ]

    def _pretrained(self, auto: Any, what: str, **kwargs: Any) -> Any:
        """What an Auto class of transformers reads in the folder, without remote code.

        Raises:
            EncoderLoadError: it cannot be read.
        """
        from safetensors import SafetensorError

        folder = self.checkpoint.folder
        try:
            return auto.from_pretrained(folder, trust_remote_code=False, **kwargs)
        except SafetensorError as error:
            raise EncoderLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
            raise EncoderLoadError(f"{folder} could not be loaded as {what}: {error}") from error

    def _auto_model(self, config: Any, dtype: torch.dtype) -> Any:
        """The `AutoModel` of a config of transformers, complete.

        Raises:
            EncoderLoadError: the files are damaged, incomplete or of another model.
        """
        from transformers import AutoModel

        model, loaded = self._pretrained(
            AutoModel, config.model_type, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        # Transformers fills what the file lacks with random numbers and only warns.
        self._check_weights(model, sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]])))
        return model

    def _check_weights(self, model: torch.nn.Module, absent: Sequence[str]) -> None:
        """Refuse a model that a file has filled in part, or with numbers of no use.

        Raises:
            EncoderLoadError: `absent` names tensors that the file lacks, or some are not finite.
        """
        folder = self.checkpoint.folder
        if absent:
            raise EncoderLoadError(
                f"{folder}: the weights lack, or have in another shape: {', '.join(absent[:3])} ({len(absent)} "
                "tensors). They are of another model; get the complete folder anew"
            )
        bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise EncoderLoadError(f"{folder}: not finite: {', '.join(bad[:3])} ({len(bad)} tensors). Get it anew")
