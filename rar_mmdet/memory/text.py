"""The recipe of a memory as a config states it: built at first use, then read from disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from rar_mmdet.errors import MemoryMismatchError, MissingAssetError, VocabularyError
from rar_mmdet.files.vocabulary import clean_name
from rar_mmdet.memory.encode import PromptGroup, TextEncoder, encode_groups, name_groups, text_entries
from rar_mmdet.memory.index import IndexSpec
from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo
from rar_mmdet.memory.templates import resolve_templates

__all__ = ["TextMemory", "default_cache_dir"]

logger = logging.getLogger(__name__)

DESCRIPTION_KEYS = ("def", "cat_info", "cat_info_gpt")  # LVIS v1; V3Det 2023 v1


def default_cache_dir() -> Path:
    """Where memories are kept: `RAR_MMDET_CACHE`, else `~/.cache/rar_mmdet`; then `memory`."""
    return Path(os.environ.get("RAR_MMDET_CACHE", "~/.cache/rar_mmdet")).expanduser() / "memory"


class TextMemory:
    """Category names as prompts, encoded once per encoder, templates and names, and kept on disk.

    Args:
        templates: a named set ('single', 'clip7', 'clip80', 'vild81') or a list of sentences with `{}`; `None`:
            'single' when building, whatever it was built with for `path`.
        ensemble: 'average': one vector per name; 'separate': one per prompt, joined by `aggregation`.
        keep_qualifier: whether "(drink)" of "cup_(drink)" stays in the prompt.
        cache_dir: folder of built memories; `None`: `RAR_MMDET_CACHE` or `~/.cache/rar_mmdet`.
        annotations: an LVIS or V3Det annotation file, for the next two.
        synonyms: add its `synonyms` as further names.
        descriptions: add its `def` (LVIS) and `cat_info`, `cat_info_gpt` (V3Det) as they stand.
        path: a folder made by tools/build_memory.py, used as it is instead of building.
        aggregation: 'max' or 'mean' over a category's entries.
        text_weight: mix of text and image entries; see `CategoryMemory`.
        index: how to search: 'torch', 'flat', 'hnsw', 'pca-hnsw', any FAISS factory string, or an `IndexSpec`.
        ef_search: HNSW's effort per query; see `IndexSpec`.
        survivors: rows scored exactly by an approximate index; see `IndexSpec`.
    """

    def __init__(
        self,
        *,
        templates: str | Sequence[str] | None = None,
        ensemble: str = "average",
        keep_qualifier: bool = True,
        annotations: str | Path | None = None,
        synonyms: bool = False,
        descriptions: bool = False,
        cache_dir: str | Path | None = None,
        path: str | Path | None = None,
        aggregation: str = "max",
        text_weight: float | None = None,
        index: str | IndexSpec = "torch",
        ef_search: int | None = None,
        survivors: int | None = None,
    ) -> None:
        if ensemble not in ("average", "separate"):
            raise ValueError(f"ensemble must be 'average' or 'separate', got {ensemble!r}")
        self.templates = None if templates is None else resolve_templates(templates)
        self.ensemble, self.keep_qualifier = ensemble, keep_qualifier
        if (synonyms or descriptions) and annotations is None:
            raise ValueError("synonyms and descriptions come from an annotation file; give `annotations`")
        self.annotations = Path(annotations).expanduser() if annotations is not None else None
        self.synonyms, self.descriptions = synonyms, descriptions
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else None
        self.path = Path(path).expanduser() if path is not None else None
        self.aggregation, self.text_weight = aggregation, text_weight
        self.index = IndexSpec(index) if isinstance(index, str) else index
        if ef_search is not None:
            self.index = replace(self.index, ef_search=ef_search)
        if survivors is not None:
            self.index = replace(self.index, survivors=survivors)

    def prepare(self, encoder: TextEncoder, category_names: Sequence[str]) -> CategoryMemory:
        """The memory of these names, from disk if it is there, else built and kept. Two processes build it once.

        Raises:
            MemoryMismatchError: the memory in `path` was made by another encoder, templates or names.
            VocabularyError: there are no names, or a name is empty.
        """
        if not category_names:
            raise VocabularyError("category_names is empty; give the dataset's names")
        if self.path is not None:
            memory = self._open(self.path)
            self.check_fits(memory, encoder, category_names)
            return memory
        groups = self.groups(category_names)
        folder = self._folder(encoder, groups)
        memory = self._open_cached(folder) or self._build_once(folder, encoder, category_names, groups)
        self.check_fits(memory, encoder, category_names)
        if memory.faiss is not None and memory.index.is_approximate and not memory.faiss.was_read:
            memory.save(folder)  # with its index, for the next process
        logger.info("memory: %r from %s", memory, folder)
        return memory

    def update(self, memory: CategoryMemory, encoder: TextEncoder, category_names: Sequence[str]) -> CategoryMemory:
        """`memory` for changed names: kept categories keep their entries, only new names are encoded.

        The n-th of several equal names stays the n-th.

        Raises:
            MemoryMismatchError: the memory was made by another encoder or templates.
        """
        self.check_fits(memory, encoder, memory.category_names)
        seen: Counter[str] = Counter()
        old: dict[tuple[str, int], int] = {}
        for old_id, name in enumerate(memory.category_names):
            old[name, seen[name]] = old_id
            seen[name] += 1
        seen.clear()
        old_ids: list[int | None] = []
        for name in category_names:
            old_ids.append(old.get((name, seen[name])))
            seen[name] += 1
        kept = memory.with_categories(old_ids, category_names)
        recipe = copy(self)
        recipe.templates, recipe.ensemble = memory.info.templates, memory.info.ensemble
        recipe.keep_qualifier = memory.info.keep_qualifier
        groups = [group for group in recipe.groups(category_names) if old_ids[group.category_id] is None]
        return kept.with_entries(text_entries(groups, encode_groups(encoder, groups))) if groups else kept

    def groups(self, category_names: Sequence[str]) -> list[PromptGroup]:
        """The prompts of every category, in label order."""
        templates = self.templates or resolve_templates("single")
        further = self._further_texts(category_names)
        groups = []
        for category_id, name in enumerate(category_names):
            synonyms, descriptions = further[category_id]
            for source, shown in [("name", name), *(("synonym", other) for other in synonyms)]:
                groups += name_groups(
                    category_id,
                    shown,
                    templates,
                    ensemble=self.ensemble,
                    keep_qualifier=self.keep_qualifier,
                    source=source,
                )
            groups += [PromptGroup(category_id, f"description: {text}", (text,)) for text in descriptions]
        return groups

    def info(self, encoder: TextEncoder, dataset: str = "") -> MemoryInfo:
        """What a memory of this recipe is made of."""
        return MemoryInfo(
            encoder=encoder.fingerprint,
            logit_scale=encoder.logit_scale,
            templates=self.templates or resolve_templates("single"),
            ensemble=self.ensemble,
            keep_qualifier=self.keep_qualifier,
            dataset=dataset,
        )

    def check_fits(self, memory: CategoryMemory, encoder: TextEncoder, category_names: Sequence[str]) -> None:
        """Refuse a memory of another encoder, templates or vocabulary, and say where they differ."""
        where = self.path or "the cached memory"
        if memory.info.encoder != encoder.fingerprint:
            raise MemoryMismatchError(
                f"{where} was built by encoder {memory.info.encoder}, this config's is {encoder.fingerprint}; their "
                "vectors cannot be compared. Build it with this encoder, or use that one"
            )
        if self.templates is not None and memory.info.templates != self.templates:
            raise MemoryMismatchError(
                f"{where} was built with templates {_short(memory.info.templates)}, this config says "
                f"{_short(self.templates)}. Build it anew, or drop `templates`"
            )
        _check_names(where, memory.category_names, tuple(category_names))

    def _further_texts(self, category_names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Synonyms and descriptions of each category."""
        if self.annotations is None:
            return [([], [])] * len(category_names)
        if not self.annotations.is_file():
            raise MissingAssetError(f"annotations {self.annotations.absolute()} (for synonyms) do not exist")
        categories = json.loads(self.annotations.read_text(encoding="utf-8"))["categories"]
        _check_names(self.annotations, tuple(c["name"] for c in categories), tuple(category_names))
        further = []
        for category in categories:
            name = clean_name(category["name"], keep_qualifier=self.keep_qualifier)
            synonyms = [s for s in category.get("synonyms", []) if clean_name(s) != name] if self.synonyms else []
            texts = [category.get(key) for key in DESCRIPTION_KEYS] if self.descriptions else []
            further.append((list(dict.fromkeys(synonyms)), [text for text in texts if text]))
        return further

    def _open(self, folder: Path) -> CategoryMemory:
        return CategoryMemory.load(folder, aggregation=self.aggregation, text_weight=self.text_weight, index=self.index)

    def _open_cached(self, folder: Path) -> CategoryMemory | None:
        """The cached memory; `None` if there is none or it is not usable (damaged, of an older schema)."""
        try:
            return self._open(folder)
        except MissingAssetError:
            return None
        except MemoryMismatchError as error:
            logger.warning("%s (building the cached memory anew)", error)
            return None

    def folder(self, encoder: TextEncoder, category_names: Sequence[str]) -> Path:
        """Where the memory of these names is kept."""
        return self._folder(encoder, self.groups(category_names))

    def _folder(self, encoder: TextEncoder, groups: Sequence[PromptGroup]) -> Path:
        """One folder per encoder, prompts and names; the prompts say all that templates and cleaning do."""
        content = json.dumps([encoder.fingerprint, [(g.category_id, g.source, g.texts) for g in groups]])
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", encoder.fingerprint.split("@")[0])[:40]
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        return (self.cache_dir or default_cache_dir()) / f"{label}-{len(groups)}-{key}"

    def _build_once(
        self, folder: Path, encoder: TextEncoder, category_names: Sequence[str], groups: Sequence[PromptGroup]
    ) -> CategoryMemory:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))  # released by the kernel when its holder dies
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is building the memory %s; waiting for it", folder)
            lock.acquire()
        with lock:
            built_meanwhile = self._open_cached(folder)
            if built_meanwhile is not None:
                return built_meanwhile
            parts = folder.with_name(folder.name + ".parts")
            vectors = encode_groups(encoder, groups, parts_dir=parts)
            memory = CategoryMemory(text_entries(groups, vectors), category_names, info=self.info(encoder))
            memory.save(folder)
            shutil.rmtree(parts, ignore_errors=True)
            return self._open(folder)


def _check_names(where: object, stored: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if stored == wanted:
        return
    if len(stored) != len(wanted):
        raise MemoryMismatchError(
            f"{where} holds {len(stored)} categories, this config has {len(wanted)}; only "
            f"in the config: {_only(wanted, stored)}; only in the memory: {_only(stored, wanted)}. Build it anew"
        )
    first = next(i for i, (a, b) in enumerate(zip(stored, wanted, strict=True)) if a != b)
    raise MemoryMismatchError(
        f"{where}: category {first} is {stored[first]!r}, this config's is {wanted[first]!r}. Build it for these "
        "names, in their order"
    )


def _only(some: Sequence[str], others: Sequence[str]) -> str:
    return ", ".join(sorted(set(some) - set(others))[:3]) or "none"


def _short(templates: Sequence[str]) -> str:
    return f"{list(templates[:2])}{'' if len(templates) <= 2 else f' and {len(templates) - 2} more'}"
