"""LoRA adapters of a ranker's model, in PEFT's format: which base they belong to, putting them on, merging them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rar_mmdet.errors import HostError, RankerLoadError
from rar_mmdet.files.checkpoints import Checkpoint, file_sha256

__all__ = ["Adapter", "import_peft", "weights_digest"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
BASE = "base.json"  # ours: the base by the content of its weights; PEFT knows it by name alone


def import_peft() -> Any:
    """The package `peft`.

    Raises:
        HostError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise HostError(
            f"adapters need the package peft, which cannot be imported ({error}): pip install 'rar_mmdet[train]'"
        ) from error
    return peft


def weights_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over the names and contents of a model's weight files: what an adapter is a difference to."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.folder.glob("*.safetensors")):
        digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()[:32]


class Adapter:
    """A folder as PEFT writes it: what `rar-mmdet finetune train` leaves, or another trainer.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def missing(self) -> list[str]:
        """Lines that say what is not there."""
        absent = [name for name in (CONFIG, WEIGHTS) if not (self.folder / name).is_file()]
        if not absent:
            return []
        return [
            f"adapter {str(self.folder)!r}: no {' and no '.join(absent)} there; give a folder as `rar-mmdet finetune "
            "train` or PEFT writes it"
        ]

    @cached_property
    def config(self) -> dict[str, Any]:
        """PEFT's settings of it."""
        return self._json(CONFIG)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over settings and weights."""
        parts = [file_sha256(self.folder / name) for name in (CONFIG, WEIGHTS)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def identity(self) -> dict[str, str]:
        """Name and content, for the keys of kept answers."""
        return {"id": self.folder.resolve().name, "weights": self.fingerprint}

    def name_base(self, checkpoint: Checkpoint) -> None:
        """Write down which model this adapter was trained on, also where PEFT and servers look for its name."""
        config = {**self._json(CONFIG), "base_model_name_or_path": checkpoint.model}
        (self.folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        base = {"model": checkpoint.model, "weights": weights_digest(checkpoint)}
        (self.folder / BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")

    def check_base(self, checkpoint: Checkpoint) -> None:
        """Refuse a model that this adapter was not trained on.

        Raises:
            RankerLoadError: its weights are others; where the adapter does not know them, its name is another one.
        """
        base = self._json(BASE)
        if base:
            found = weights_digest(checkpoint)
            if base.get("weights") == found:
                return
            trained = f"{base.get('model')!r} (weights {str(base.get('weights'))[:8]})"
            given = f"{checkpoint.model!r} (weights {found[:8]})"
        else:
            name = str(self.config.get("base_model_name_or_path") or "")
            if not name or _last(name) == _last(checkpoint.model) or _last(name) == _last(str(checkpoint.folder)):
                return
            trained, given = repr(name), repr(checkpoint.model)
        raise RankerLoadError(
            f"adapter {self.folder} was trained on {trained}, and model={given} is another one; give the model it was "
            "trained on"
        )

    def put_on(self, model: Any) -> Any:
        """The model with this adapter added to its weights: a plain model again, as fast as before.

        Args:
            model: as read from disk; changed in place.

        Raises:
            HostError: peft is not installed.
            RankerLoadError: the adapter is no LoRA, damaged, or does not fit the model.
        """
        peft = import_peft()
        from peft.utils import set_peft_model_state_dict
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if str(self.config.get("peft_type")) != "LORA":
            raise RankerLoadError(
                f"adapter {self.folder} is of type {self.config.get('peft_type')!r}; LoRA can be used here"
            )
        try:
            config = peft.PeftConfig.from_pretrained(str(self.folder))
            config.inference_mode = True
            config.base_model_name_or_path = None  # PEFT warns of the same base in another folder; see check_base
            wrapped = peft.get_peft_model(model, config)
            result: Any = set_peft_model_state_dict(wrapped, load_file(self.folder / WEIGHTS))
        except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise RankerLoadError(
                f"adapter {self.folder} does not fit the model {model.name_or_path}: {error}. Give the model it was "
                "trained on"
            ) from error
        absent = [key for key in result.missing_keys if ".lora_" in key]
        if absent or result.unexpected_keys:
            raise RankerLoadError(
                f"adapter {self.folder} does not fit the model {model.name_or_path}: "
                f"{len(absent)} of its parts are missing, {len(result.unexpected_keys)} have no place, such as "
                f"{(absent + list(result.unexpected_keys))[0]!r}. Give the model it was trained on"
            )
        return wrapped.merge_and_unload().eval()

    def _json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise RankerLoadError(f"{file} is not JSON: {error}") from error
        return dict(content) if isinstance(content, Mapping) else {}


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def copy_all_but_weights(folder: Path, out: Path) -> None:
    """Config, tokenizer, processor and templates of a model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
