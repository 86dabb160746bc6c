"""Where the weights of an open_clip model lie on this machine, and whether a file of weights fits its model."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.errors import EncoderLoadError
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.files.text import parse_json

__all__ = ["WeightsSource", "check_weights_fit", "fetch", "locate", "root_logging_untouched"]

LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
TOKENIZER_SUFFIXES = (".json", ".txt", ".model")
# An image processor, and a tokenizer, are there if one of these files of transformers is.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


@dataclass(frozen=True)
class WeightsSource:
    """One model's files: what is here and what is missing."""

    label: str  # how messages and fingerprints call the model; free of folders, so that files may be moved
    checkpoint: Path | None = None  # the file of weights, if it is here
    config: dict[str, Any] = field(default_factory=dict)  # the model's architecture and preprocessing
    folder: Path | None = None  # the folder that holds all of the model, if it is one in open_clip's layout
    tokenizer: Path | None = None  # the folder of a tokenizer of transformers; None: open_clip's own
    text_tower: Path | None = None  # the folder of the config of a text tower of transformers, where it has one
    missing: tuple[str, ...] = ()  # per missing file: what, where it is looked for, how to get it

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Open_clip's settings of the text side."""
        text: Mapping[str, Any] = self.config.get("model_cfg", {}).get("text_cfg", {})
        return text

    def digest(self) -> str:
        """16 hex digits over architecture, preprocessing, weights and tokenizer: what decides the vectors."""
        assert self.checkpoint is not None, "digest() of a model that is not here"
        total = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        files = [self.checkpoint, *_tokenizer_files(self.tokenizer)]
        if self.text_tower is not None:
            files.append(self.text_tower / "config.json")
        for path in files:
            total.update(file_sha256(path).encode())
        return total.hexdigest()[:16]


def _tokenizer_files(folder: Path | None) -> list[Path]:
    """Everything in the folder that a tokenizer may be made of."""
    if folder is None:
        return []
    return [p for p in sorted(folder.iterdir()) if p.suffix in TOKENIZER_SUFFIXES and p.name != CONFIG]


def locate(model: str, pretrained: str | None, cache_dir: str | None = None) -> WeightsSource:
    """Find the files of `model` without loading or downloading anything.

    Raises:
        EncoderLoadError: the model's name or tag does not exist, or the two arguments contradict each other.
    """
    if not model.startswith((LOCAL_PREFIX, HUB_PREFIX)):
        return _with_text_side(_locate_builtin(model, pretrained, cache_dir), cache_dir)
    if pretrained is not None:
        raise EncoderLoadError(f"model={model!r} brings its own weights; drop `pretrained` (given: {pretrained!r})")
    if model.startswith(LOCAL_PREFIX):
        return _with_text_side(_locate_folder(Path(model.removeprefix(LOCAL_PREFIX)).expanduser()), cache_dir)
    return _with_text_side(_locate_hub(model, cache_dir), cache_dir)


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


def fetch(model: str, pretrained: str | None, cache_dir: str | None = None) -> None:
    """Download what `locate` finds missing, into the hub's cache or open_clip's.

    Raises:
        EncoderLoadError: it could not be downloaded.
    """
    from huggingface_hub import snapshot_download
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    try:
        with root_logging_untouched():
            tag = locate(model, pretrained, cache_dir).config.get("tag")
            if model.startswith(HUB_PREFIX):
                repo = model.removeprefix(HUB_PREFIX)
                download_pretrained_from_hf(repo, filename=CONFIG, cache_dir=cache_dir)
                download_pretrained_from_hf(repo, cache_dir=cache_dir)
            elif tag:
                download_pretrained(tag, cache_dir=cache_dir)
            text = locate(model, pretrained, cache_dir).text_config
            if text.get("hf_tokenizer_name") and not model.startswith(LOCAL_PREFIX):
                wanted = [f"*{suffix}" for suffix in TOKENIZER_SUFFIXES]
                snapshot_download(text["hf_tokenizer_name"], allow_patterns=wanted, cache_dir=cache_dir)
            if text.get("hf_model_name"):
                snapshot_download(text["hf_model_name"], allow_patterns=["config.json"], cache_dir=cache_dir)
    except EncoderLoadError:
        raise
    except Exception as error:  # the hub, the network and open_clip raise anything from OSError to their own classes
        raise EncoderLoadError(f"{model} ({pretrained}) could not be downloaded: {error}") from error


def _locate_folder(folder: Path, label: str = "local-dir", how: str | None = None) -> WeightsSource:
    """A folder in open_clip's layout; `how` says how to get it anew."""
    how = how or "copy the whole model folder there, or correct `model='local-dir:...'`"
    if not folder.is_dir():
        return WeightsSource(label, missing=(f"open_clip model folder {folder.absolute()}\n  {how}",))
    config_file = folder / CONFIG
    if not config_file.is_file():
        return WeightsSource(label, missing=(f"{config_file.absolute()} (the model's architecture)\n  {how}",))
    config = parse_json(config_file.read_bytes(), str(config_file), EncoderLoadError)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise EncoderLoadError(f"{config_file}: no `model_cfg`; expected the file open_clip's push_to_hf_hub writes")
    # The private helper decides which of several files open_clip loads; hashing must follow it exactly.
    from open_clip.factory import _find_checkpoint_in_dir

    with root_logging_untouched():
        found = _find_checkpoint_in_dir(folder)
    missing = () if found else (f"weights in {folder.absolute()} (*.safetensors)\n  {how}",)
    return WeightsSource(label, Path(found) if found else None, config, folder, missing=missing)


def _locate_hub(model: str, cache_dir: str | None) -> WeightsSource:
    repo = model.removeprefix(HUB_PREFIX)
    how = f"looked for in {_cache(cache_dir)}\n  {_download(repo)}"
    config_file = _cached(repo, CONFIG, cache_dir)
    if config_file is None:
        return WeightsSource(model, missing=(f"{model}: {CONFIG}, weights and tokenizer, {how}",))
    return _locate_folder(config_file.parent, model, how)


def _cache(cache_dir: str | None) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return cache_dir or HF_HUB_CACHE


def _download(repo: str, *files: str) -> str:
    names = "".join(f" {name}" for name in files)
    return f"on a machine with network: hf download {repo}{names}   (then copy the cache, or set HF_HOME)"


def _cached(repo: str, name: str, cache_dir: str | None) -> Path | None:
    """A file of a hub repository, if it is in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, name, cache_dir=_cache(cache_dir))
    except HFValidationError:  # a path is no hub id
        return None
    return Path(found) if isinstance(found, str) else None


def _with_text_side(source: WeightsSource, cache_dir: str | None) -> WeightsSource:
    """The source and what its texts need: a tokenizer of transformers, and the config of such a text tower."""
    tokenizer, tower, missing = None, None, list(source.missing)
    repo = source.text_config.get("hf_tokenizer_name")
    if repo and source.label == "local-dir":
        assert source.folder is not None
        tokenizer = source.folder
        if not any((tokenizer / name).is_file() for name in VOCABULARIES):
            how = "copy the whole model folder there, or correct `model='local-dir:...'`"
            missing.append(f"tokenizer files in {tokenizer.absolute()} (tokenizer.json ...)\n  {how}")
    elif repo:
        found = [path for name in VOCABULARIES if (path := _cached(repo, name, cache_dir)) is not None]
        tokenizer = found[0].parent if found else None
        if tokenizer is None:
            how = _download(repo, *(f"--include '*{suffix}'" for suffix in TOKENIZER_SUFFIXES))
            missing.append(f"{source.label}: its tokenizer, {repo}: looked for in {_cache(cache_dir)}\n  {how}")
    repo = source.text_config.get("hf_model_name")
    if repo:
        config = _cached(repo, "config.json", cache_dir)
        tower = config.parent if config else None
        if tower is None:
            how = _download(repo, "config.json")
            missing.append(
                f"{source.label}: its text tower's config, {repo}: looked for in {_cache(cache_dir)}\n  {how}"
            )
    return replace(source, tokenizer=tokenizer, text_tower=tower, missing=tuple(missing))


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
            config={"model_cfg": architecture},
            missing=(f"{model}: weights file {path.absolute()}\n  put it there, or correct `pretrained`",),
        )
    near = get_close_matches(pretrained, tags, n=3, cutoff=0.3) or tags
    raise EncoderLoadError(f"{model} has no weights tagged {pretrained!r}. Tags: {', '.join(near)}; or give a file")


def _locate_tag(label: str, config: dict[str, Any], cache_dir: str | None) -> WeightsSource:
    tag = config["tag"]
    if tag.get("hf_hub"):  # open_clip prefers the hub over the URL
        repo, filename = os.path.split(tag["hf_hub"])
        wanted = filename or "open_clip_pytorch_model.bin"
        safe = "open_clip_model.safetensors" if not filename else f"{os.path.splitext(wanted)[0]}.safetensors"
        found = _cached(repo, safe, cache_dir) or _cached(repo, wanted, cache_dir)
        where, how = _cache(cache_dir), _download(repo, safe)
    else:
        target = Path(cache_dir or "~/.cache/clip").expanduser() / os.path.basename(tag.get("url", ""))
        found = target if target.is_file() else None
        where, how = str(target), f"on a machine with network: download {tag.get('url')} to that place"
    if found:
        return WeightsSource(label, found, config)
    model, _, name = label.partition("/")
    text = f"weights of open_clip model {model}, tag {name}: looked for in {where}\n  {how}"
    return WeightsSource(label, config=config, missing=(text,))


def _checkpoint_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    from open_clip.factory import load_state_dict

    return {name: tuple(t.shape) for name, t in load_state_dict(str(path)).items() if isinstance(t, torch.Tensor)}


_root_logging = threading.RLock()  # two loads at once would each restore what the other had set


@contextmanager
def root_logging_untouched() -> Iterator[None]:
    """open_clip logs every step through the root logger, whose first line installs a handler that doubles others."""
    with _root_logging:
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
