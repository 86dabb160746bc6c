"""Names to vectors: prompts in chunks that a killed build does not lose."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory.base import EntryEncoder
from rar_mmdet.memory.cache import compute_or_resume
from rar_mmdet.memory.entries import Entries, EntryKind

__all__ = ["PromptGroup", "encode_groups", "full_precision", "name_groups", "text_entries"]

logger = logging.getLogger(__name__)

PROMPTS_PER_PART = 4096  # encoded between two writes to disk: seconds on a GPU, minutes on a CPU (ours)


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
    encoder: EntryEncoder,
    groups: Sequence[PromptGroup],
    *,
    parts_dir: Path | None = None,
) -> Tensor:
    """One unit vector per group, on the CPU.

    Args:
        encoder: encodes the texts.
        groups: what to encode; groups of the same texts are encoded once.
        parts_dir: folder for finished parts; a build that finds it goes on where the last one stopped.

    Returns:
        (len(groups), D) float32.
    """
    todo = list(dict.fromkeys(group.texts for group in groups))
    done: dict[tuple[str, ...], Tensor] = {}
    total = sum(len(texts) for texts in todo)
    logger.info("encoding %d prompts for %d of %d vectors", total, len(todo), len(groups))
    # disable=None: a bar on a terminal, silence in a log file
    with tqdm(total=total, unit="prompt", desc="memory", disable=None) as bar, full_precision():
        for part in _parts(todo):
            vectors = compute_or_resume(parts_dir, part, len(part), partial(_encode_part, encoder, part))
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


def _encode_part(encoder: EntryEncoder, part: Sequence[tuple[str, ...]]) -> Tensor:
    vectors = encoder.encode_texts([text for texts in part for text in texts]).float().cpu()
    means = torch.stack([group.mean(dim=0) for group in vectors.split([len(texts) for texts in part])])
    lengths = means.norm(dim=1, keepdim=True)
    return torch.where(lengths.new_tensor([len(t) == 1 for t in part])[:, None].bool(), means, means / lengths)


@contextmanager
def full_precision() -> Iterator[None]:
    """An autocast around a build must not decide what is kept on disk."""
    with torch.autocast("cpu", enabled=False):
        if not torch.cuda.is_available():
            yield
            return
        with torch.autocast("cuda", enabled=False):
            yield
