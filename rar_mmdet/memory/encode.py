"""Names to vectors: prompts in chunks that a killed build does not lose."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory.entries import Entries, EntryKind

__all__ = ["PromptGroup", "TextEncoder", "encode_groups", "name_groups", "once", "text_entries"]

logger = logging.getLogger(__name__)

PROMPTS_PER_PART = 4096  # encoded between two writes to disk: seconds on a GPU, minutes on a CPU (ours)


class TextEncoder(Protocol):
    """What a memory needs of an encoder."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def logit_scale(self) -> float: ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class PromptGroup:
    """Texts that become one vector of a category: their unit vectors' mean, at unit length (CLIP's ensembling)."""

    category_id: int
    source: str
    texts: tuple[str, ...]


def name_groups(
    category_id: int, name: str, templates: Sequence[str], *, ensemble: str, keep_qualifier: bool, source: str = "name"
) -> list[PromptGroup]:
    """The prompts of one name: one group of all templates ('average'), or one group each ('separate')."""
    shown = clean_name(name, keep_qualifier=keep_qualifier)
    texts = tuple(template.replace("{}", shown) for template in templates)
    if ensemble == "average":
        return [PromptGroup(category_id, f"{source}: {shown}", texts)]
    return [PromptGroup(category_id, f"{source}: {text}", (text,)) for text in texts]


def text_entries(groups: Sequence[PromptGroup], vectors: Tensor) -> Entries:
    """Entries of encoded groups."""
    ids = torch.tensor([group.category_id for group in groups], dtype=torch.int64)
    return Entries.sorted(vectors, ids, EntryKind.TEXT, [group.source for group in groups])


def encode_groups(
    encoder: TextEncoder,
    groups: Sequence[PromptGroup],
    *,
    parts_dir: Path | None = None,
    known: Mapping[tuple[str, ...], Tensor] | None = None,
) -> Tensor:
    """One unit vector per group, on the CPU.

    Args:
        encoder: encodes the texts.
        groups: what to encode; groups of the same texts are encoded once.
        parts_dir: folder for finished parts; a build that finds it goes on where the last one stopped.
        known: vectors of texts encoded earlier, used instead of encoding.

    Returns:
        (len(groups), D) float32.
    """
    known = known or {}
    unique = list(dict.fromkeys(group.texts for group in groups))
    todo = [texts for texts in unique if texts not in known]
    done: dict[tuple[str, ...], Tensor] = {texts: known[texts] for texts in unique if texts in known}
    total = sum(len(texts) for texts in todo)
    logger.info("encoding %d prompts for %d of %d vectors", total, len(todo), len(groups))
    # disable=None: a bar on a terminal, silence in a log file
    with tqdm(total=total, unit="prompt", desc="memory", disable=None) as bar:
        for part in _parts(todo):
            vectors = once(parts_dir, part, len(part), partial(_encode_part, encoder, part))
            done.update(zip(part, vectors, strict=True))
            bar.update(sum(len(texts) for texts in part))
    return torch.stack([done[group.texts] for group in groups])


def _parts(todo: Sequence[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    part: list[tuple[str, ...]] = []
    size = 0
    for texts in todo:
        part.append(texts)
        size += len(texts)
        if size >= PROMPTS_PER_PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _encode_part(encoder: TextEncoder, part: Sequence[tuple[str, ...]]) -> Tensor:
    vectors = encoder.encode_texts([text for texts in part for text in texts]).float().cpu()
    means = torch.stack([group.mean(dim=0) for group in vectors.split([len(texts) for texts in part])])
    lengths = means.norm(dim=1, keepdim=True)
    return torch.where(lengths.new_tensor([len(t) == 1 for t in part])[:, None].bool(), means, means / lengths)


def once(parts_dir: Path | None, key: Any, count: int, compute: Callable[[], Tensor]) -> Tensor:
    """`compute()`, or its result from an earlier run that was stopped.

    Args:
        parts_dir: folder of results; `None` keeps none.
        key: what the result depends on, as JSON.
        count: rows of the result.
        compute: makes (count, D) vectors.
    """
    if parts_dir is None:
        return compute()
    path = parts_dir / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        try:
            vectors = load_file(str(path))["vectors"]
            if len(vectors) == count:
                return vectors
        except (SafetensorError, KeyError, OSError) as error:
            logger.warning("a part of an earlier build is not readable (%s); made anew", error)
    vectors = compute()
    parts_dir.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"vectors": vectors.contiguous()}, str(fresh))
    os.replace(fresh, path)
    return vectors
