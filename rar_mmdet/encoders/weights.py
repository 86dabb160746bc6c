"""Where the weights of an open_clip model lie on this machine, and whether a file of weights fits its model."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.errors import EncoderLoadError

__all__ = ["WeightsSource", "check_weights_fit", "locate", "root_logging_untouched"]

LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"
# Files open_clip writes for, or accepts from, a hub repository (open_clip/constants.py, 3.3.0).
HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
TOKENIZER_SUFFIXES = (".json", ".txt", ".model")


@dataclass(frozen=True)
class WeightsSource:
    """One model's files: what is here and what is missing."""

    label: str  # how messages and fingerprints call the model; free of folders, so that files may be moved
    checkpoint: Path | None = None  # the file of weights, if it is here
    config: dict[str, Any] = field(default_factory=dict)  # the model's architecture and preprocessing
    tokenizer_files: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()  # per missing file: what, where it is looked for, how to get it

    def digest(self) -> str:
        """16 hex digits over architecture, preprocessing, weights and tokenizer: what decides the vectors."""
        assert self.checkpoint is not None, "digest() of a model that is not here"
        total = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        for path in (self.checkpoint, *self.tokenizer_files):
            total.update(_file_sha256(path).encode())
        return total.hexdigest()[:16]


def locate(model: str, pretrained: str | None, cache_dir: str | None = None) -> WeightsSource:
    """Find the files of `model` without loading or downloading anything.

    Raises:
        EncoderLoadError: the model's name or tag does not exist, or the two arguments contradict each other.
    """
    if model.startswith((LOCAL_PREFIX, HUB_PREFIX)):
        if pretrained is not None:
            raise EncoderLoadError(f"model={model!r} brings its own weights; drop `pretrained` (given: {pretrained!r})")
        if model.startswith(LOCAL_PREFIX):
            return _locate_folder(Path(model.removeprefix(LOCAL_PREFIX)).expanduser())
        return _locate_hub(model, cache_dir)
    return _locate_builtin(model, pretrained, cache_dir)


def check_weights_fit(checkpoint: Path, model: torch.nn.Module, label: str) -> None:
    """Refuse weights that open_clip fills in or resizes silently where a key is absent or has another shape.

    open_clip loads strictly, except that it sets an absent `logit_bias` to zero and interpolates position embeddings of
    another size (open_clip 3.3.0, factory.load_checkpoint); either gives a model nobody trained.
    """
    shapes = _checkpoint_shapes(checkpoint)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if "logit_bias" in own and "logit_bias" not in shapes:
        raise EncoderLoadError(
            f"{checkpoint}: no `logit_bias`, which the SigLIP-type model {label} needs. The weights belong to another "
            "model; name the model they were trained as"
        )
    for name in ("positional_embedding", "text.positional_embedding", "visual.positional_embedding"):
        if name in shapes and name in own and shapes[name] != own[name]:
            raise EncoderLoadError(
                f"{checkpoint}: `{name}` is {shapes[name]}, model {label} expects {own[name]}. The weights were "
                "trained at another image size or text length; name the model they were trained as"
            )
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor.float()).all()]
    if bad:
        raise EncoderLoadError(
            f"{checkpoint}: not finite: {', '.join(bad[:3])} ({len(bad)} tensors). Get the file anew"
        )


def _locate_folder(folder: Path) -> WeightsSource:
    label = "local-dir"
    how = "copy the whole model folder there, or correct `model='local-dir:...'`"
    if not folder.is_dir():
        return WeightsSource(label, missing=(f"open_clip model folder {folder.absolute()}\n  {how}",))
    config_file = folder / "open_clip_config.json"
    if not config_file.is_file():
        return WeightsSource(label, missing=(f"{config_file.absolute()} (the model's architecture)\n  {how}",))
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderLoadError(f"{config_file} is not JSON ({error}); copy the model folder anew") from error
    if "model_cfg" not in config:
        raise EncoderLoadError(f"{config_file}: no `model_cfg`; expected the file open_clip's push_to_hf_hub writes")
    # The private helper decides which of several files open_clip loads; hashing must follow it exactly.
    from open_clip.factory import _find_checkpoint_in_dir

    with root_logging_untouched():
        found = _find_checkpoint_in_dir(folder)
    missing: tuple[str, ...] = () if found else (f"weights in {folder.absolute()} (*.safetensors)\n  {how}",)
    tokenizer: tuple[Path, ...] = ()
    if config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name"):
        tokenizer = tuple(
            path
            for path in sorted(folder.iterdir())
            if path.suffix in TOKENIZER_SUFFIXES and path.name != config_file.name
        )
        if not tokenizer:
            missing += (f"tokenizer files in {folder.absolute()} (tokenizer.json ...)\n  {how}",)
    return WeightsSource(label, Path(found) if found else None, config, tokenizer, missing)


def _locate_hub(model: str, cache_dir: str | None) -> WeightsSource:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = model.removeprefix(HUB_PREFIX)
    cache = cache_dir or HF_HUB_CACHE
    how = f"looked for in {cache}\n  on a machine with network: hf download {repo}  (copy the cache, or set HF_HOME)"
    config_file = try_to_load_from_cache(repo, "open_clip_config.json", cache_dir=cache)
    hits = (try_to_load_from_cache(repo, name, cache_dir=cache) for name in HUB_WEIGHTS)
    checkpoint = next((hit for hit in hits if isinstance(hit, str)), None)
    missing = []
    config: dict[str, Any] = {}
    if isinstance(config_file, str):
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    else:
        missing.append(f"{model}: open_clip_config.json, {how}")
    if checkpoint is None:
        missing.append(f"{model}: weights, {how}")
    return WeightsSource(model, Path(checkpoint) if checkpoint else None, config, (), tuple(missing))


def _locate_builtin(model: str, pretrained: str | None, cache_dir: str | None) -> WeightsSource:
    import open_clip

    name = model.replace("/", "-")
    architecture = open_clip.get_model_config(name)
    if architecture is None:
        near = get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise EncoderLoadError(
            f"open_clip has no model {model!r}. Nearest: {', '.join(near) or 'none'}. "
            "A folder is written 'local-dir:FOLDER', a hub repository 'hf-hub:ORG/NAME'"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise EncoderLoadError(
            f"model={model!r} without `pretrained` would be random weights. Give a tag ({', '.join(tags)}) or a file"
        )
    tag_config = open_clip.get_pretrained_cfg(name, pretrained)
    if tag_config:
        return _locate_tag(f"{name}/{pretrained}", {"model_cfg": architecture, "tag": tag_config}, cache_dir)
    path = Path(pretrained).expanduser()
    if path.is_file():
        return WeightsSource(name, path, {"model_cfg": architecture})
    if path.suffix or os.sep in pretrained:
        return WeightsSource(
            name,
            missing=(f"{model}: weights file {path.absolute()}\n  put it there, or correct `pretrained`",),
        )
    near = get_close_matches(pretrained, tags, n=3, cutoff=0.3) or tags
    raise EncoderLoadError(f"{model} has no weights tagged {pretrained!r}. Tags: {', '.join(near)}; or give a file")


def _locate_tag(label: str, config: dict[str, Any], cache_dir: str | None) -> WeightsSource:
    tag = config["tag"]
    if tag.get("hf_hub"):  # open_clip prefers the hub over the URL
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE

        repo, filename = os.path.split(tag["hf_hub"])
        wanted = filename or "open_clip_pytorch_model.bin"
        safe = f"{os.path.splitext(wanted)[0]}.safetensors"
        if wanted == "open_clip_pytorch_model.bin":
            safe = "open_clip_model.safetensors"
        cache = cache_dir or HF_HUB_CACHE
        hits = (try_to_load_from_cache(repo, name, cache_dir=cache) for name in (safe, wanted))
        found = next((hit for hit in hits if isinstance(hit, str)), None)
        where, how = cache, f"hf download {repo} {safe}   (then copy the cache, or set HF_HOME)"
    else:
        folder = Path(cache_dir or "~/.cache/clip").expanduser()
        target = folder / os.path.basename(tag.get("url", ""))
        found = str(target) if target.is_file() else None
        where, how = str(target), f"download {tag.get('url')} to that place"
    if found:
        return WeightsSource(label, Path(found), config)
    model, _, name = label.partition("/")
    text = f"weights of open_clip model {model}, tag {name}: looked for in {where}\n  on a machine with network: {how}"
    return WeightsSource(label, config=config, missing=(text,))


def _checkpoint_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    from open_clip.factory import load_state_dict

    return {name: tuple(t.shape) for name, t in load_state_dict(str(path)).items() if isinstance(t, torch.Tensor)}


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: str, size: int, mtime_ns: int) -> str:
    """Hashed once per process and file; size and time are the key's part that notices an exchanged file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def root_logging_untouched() -> Iterator[None]:
    """open_clip logs every step through the root logger, whose first line installs a handler that doubles others."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    if not handlers:
        root.addHandler(logging.NullHandler())
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
