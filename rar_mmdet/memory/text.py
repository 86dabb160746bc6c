"""The recipe of a memory as a config states it: built at first use, then read from disk."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rar_mmdet.errors import ConfigError, MemoryMismatchError, MissingAssetError, VocabularyError
from rar_mmdet.files.text import parse_json, read_bytes
from rar_mmdet.files.vocabulary import check_same_vocabulary, clean_name, label_order
from rar_mmdet.memory.base import EntryEncoder
from rar_mmdet.memory.cache import default_cache_dir
from rar_mmdet.memory.encode import PromptGroup, encode_groups, name_groups, text_entries
from rar_mmdet.memory.memory import CategoryMemory, MemoryInfo, check_encoder, check_scoring
from rar_mmdet.memory.store import MANIFEST, SCHEMA_VERSION, load_memory, save_memory
from rar_mmdet.memory.templates import resolve_templates

__all__ = ["TextMemory"]

logger = logging.getLogger(__name__)

ENSEMBLES = ("average", "separate")
DESCRIPTION_KEYS = ("def", "cat_info", "cat_info_gpt")  # LVIS v1; V3Det 2023 v1
SYNONYMS = (False, True, "descriptions", "both")


@dataclass(frozen=True, kw_only=True)
class TextMemory:
    """Category names as prompts, encoded once per encoder, templates and names, and kept on disk.

    Args:
        templates: a named set ('single', 'clip7', 'clip80', 'vild81') or a list of sentences with `{}`; `None`:
            'single' when building, whatever it was built with for `path`.
        ensemble: 'average': one vector per name; 'separate': one per prompt, joined by `aggregation`. `None`:
            'average', or what `path` was built with.
        keep_qualifier: whether "(drink)" of "cup_(drink)" stays in the prompt. `None`: it does, or what `path` was
            built with.
        annotations: an LVIS or V3Det annotation file, for `synonyms`.
        synonyms: `True` adds its `synonyms` as further names, 'descriptions' its `def` (LVIS) and `cat_info`,
            `cat_info_gpt` (V3Det) as they stand, 'both' adds both.
        cache_dir: folder of built memories; `None`: `RAR_MMDET_CACHE` or `~/.cache/rar_mmdet`.
        path: a folder made by tools/build_memory.py, used as it is instead of building.
        aggregation: 'max' or 'mean' over a category's entries.
        text_weight: mix of text and image entries; see `CategoryMemory`.
        temperature: τ of the softmax over all categories; `None`: what the encoder learned for texts. Image entries,
            whose cosines with crops are higher and closer together, may want another one.

    Raises:
        ConfigError: a value is not one of these, or two of them contradict each other.
    """

    templates: str | Sequence[str] | None = None
    ensemble: str | None = None
    keep_qualifier: bool | None = None
    annotations: str | Path | None = None
    synonyms: bool | str = False
    cache_dir: str | Path | None = None
    path: str | Path | None = None
    aggregation: str = "max"
    text_weight: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.templates is not None:
            object.__setattr__(self, "templates", resolve_templates(self.templates))
        for name in ("annotations", "cache_dir", "path"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).expanduser())
        if self.ensemble not in (None, *ENSEMBLES):
            raise ConfigError(f"ensemble must be 'average' or 'separate', got {self.ensemble!r}")
        if self.synonyms not in SYNONYMS:
            raise ConfigError(f"synonyms must be True, False, 'descriptions' or 'both', got {self.synonyms!r}")
        check_scoring(self.aggregation, self.text_weight, self.temperature)
        if self.path is not None and (self.synonyms or self.annotations is not None):
            raise ConfigError(
                f"path={str(self.path)!r} is used as it is, so `synonyms` and `annotations` would do nothing. Drop "
                "them, or drop `path` to build a memory with them"
            )
        if self.synonyms and self.annotations is None:
            raise ConfigError(
                f"synonyms={self.synonyms!r} come from an annotation file; give `annotations`, the path of an LVIS or "
                "V3Det file"
            )

    def missing_assets(self) -> list[str]:
        """What must be there before it can be prepared: what, where it is looked for, how to get it. Cheap."""
        lines = []
        if self.path is not None and not (Path(self.path) / MANIFEST).is_file():
            lines.append(
                f"memory folder {Path(self.path).absolute()}\n  tools/build_memory.py CONFIG --out DIR makes one"
            )
        if self.annotations is not None and not Path(self.annotations).is_file():
            lines.append(f"annotations {Path(self.annotations).absolute()} (for synonyms)\n  correct `annotations`")
        return lines

    def prepare(self, encoder: EntryEncoder, category_names: Sequence[str]) -> CategoryMemory:
        """The memory of these names, from disk if it is there, else built and kept. Two processes build it once.

        Raises:
            MemoryMismatchError: the memory in `path` was made by another encoder, otherwise than this recipe says, or
                of other names. A memory of the cache that does not fit is built anew.
            VocabularyError: there are no names, or a name is empty.
        """
        if not category_names:
            raise VocabularyError("category_names is empty; give the dataset's names")
        if self.path is not None:
            memory = self._open(Path(self.path))
            self._check_fits(memory, encoder, category_names, self.path)
        else:
            folder = self.folder(encoder, category_names)
            memory = self._open_cached(folder, encoder, category_names) or self._build_once(
                folder, encoder, category_names
            )
            logger.info("memory: %r from %s", memory, folder)
        return memory.with_names(category_names)

    def update(self, memory: CategoryMemory, encoder: EntryEncoder, category_names: Sequence[str]) -> CategoryMemory:
        """`memory` for changed names: kept categories keep their entries, only new names are encoded.

        The n-th of several equal names stays the n-th.

        Raises:
            MemoryMismatchError: the memory was made by another encoder or templates.
        """
        self._check_fits(memory, encoder, memory.category_names, "the memory")
        old = {key: old_id for old_id, key in enumerate(_numbered(memory.category_names))}
        old_ids = [old.get(key) for key in _numbered(category_names)]
        kept = memory.with_categories(old_ids, category_names)
        info = memory.info
        recipe = replace(
            self, path=None, templates=info.templates, ensemble=info.ensemble, keep_qualifier=info.keep_qualifier
        )
        groups = [group for group in recipe.groups(category_names) if old_ids[group.category_id] is None]
        return kept.with_entries(text_entries(groups, encode_groups(encoder, groups))) if groups else kept

    def groups(self, category_names: Sequence[str]) -> list[PromptGroup]:
        """The prompts of every category, in label order."""
        further = self._further_texts(category_names)
        groups = []
        for category_id, name in enumerate(category_names):
            synonyms, descriptions = further[category_id]
            for source, shown in [("name", name), *(("synonym", other) for other in synonyms)]:
                groups += name_groups(
                    category_id,
                    shown,
                    self._templates,
                    ensemble=self.ensemble or "average",
                    keep_qualifier=self.keep_qualifier is not False,
                    source=source,
                )
            groups += [PromptGroup(category_id, f"description: {text}", (text,)) for text in descriptions]
        return groups

    def info(self, encoder: EntryEncoder, dataset: str = "") -> MemoryInfo:
        """What a memory of this recipe is made of."""
        return MemoryInfo(
            encoder=encoder.fingerprint,
            logit_scale=encoder.logit_scale,
            templates=self._templates,
            ensemble=self.ensemble or "average",
            keep_qualifier=self.keep_qualifier is not False,
            dataset=dataset,
        )

    def folder(self, encoder: EntryEncoder, category_names: Sequence[str]) -> Path:
        """Where the memory of these names is kept: one folder per encoder, prompts and cleaned names.

        The key holds all that `_check_fits` compares, so that names in another spelling find the same memory.
        """
        groups = [(group.category_id, group.source, group.texts) for group in self.groups(category_names)]
        names = [clean_name(name) for name in category_names]
        content = json.dumps([SCHEMA_VERSION, encoder.fingerprint, names, groups])
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", encoder.fingerprint.split("@")[0])[:40]
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        return Path(self.cache_dir or default_cache_dir()) / f"{label}-{len(groups)}-{key}"

    @property
    def _templates(self) -> tuple[str, ...]:
        return resolve_templates(self.templates if self.templates is not None else "single")

    def _check_fits(
        self, memory: CategoryMemory, encoder: EntryEncoder, category_names: Sequence[str], where: object
    ) -> None:
        """Refuse a memory of another encoder, recipe or vocabulary, and say where they differ."""
        check_encoder(memory.info, encoder, where)
        for name in ("templates", "ensemble", "keep_qualifier"):
            said, stored = getattr(self, name), getattr(memory.info, name)
            if said is not None and said != stored:
                raise MemoryMismatchError(
                    f"{where} was built with {name}={_short(stored)}, this config says {_short(said)}. Build it anew, "
                    f"or drop `{name}`"
                )
        check_same_vocabulary(
            memory.category_names,
            category_names,
            names_of=str(where),
            classes_of="this config",
            advice="Build it for these names: tools/build_memory.py CONFIG --out DIR",
            error=MemoryMismatchError,
        )

    def _further_texts(self, category_names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Synonyms and descriptions of each category."""
        if self.annotations is None or not self.synonyms:
            return [([], [])] * len(category_names)
        where = f"annotations {str(self.annotations)!r} (for synonyms)"
        content = parse_json(read_bytes(str(self.annotations), where, VocabularyError), where, VocabularyError)
        categories = content.get("categories") if isinstance(content, Mapping) else None
        ids = label_order(categories, category_names, where)  # type: ignore[arg-type]  # checked there
        by_id = {category["id"]: category for category in categories or ()}
        return [self._texts_of(by_id[category_id], where) for category_id in ids]

    def _texts_of(self, category: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
        synonyms = category.get("synonyms") or []
        if not isinstance(synonyms, list) or not all(isinstance(synonym, str) for synonym in synonyms):
            raise VocabularyError(
                f"{where}: the synonyms of {category['name']!r} are {synonyms!r}, expected a list of names. Mend them"
            )
        name = clean_name(category["name"], keep_qualifier=self.keep_qualifier is not False)
        others = [synonym for synonym in synonyms if synonym.strip() and clean_name(synonym) != name]
        texts = [category.get(key) for key in DESCRIPTION_KEYS]
        return (
            list(dict.fromkeys(others)) if self.synonyms in (True, "both") else [],
            [t for t in texts if t and isinstance(t, str)] if self.synonyms in ("descriptions", "both") else [],
        )

    def _open(self, folder: Path) -> CategoryMemory:
        return load_memory(
            folder, aggregation=self.aggregation, text_weight=self.text_weight, temperature=self.temperature
        )

    def _open_cached(self, folder: Path, encoder: EntryEncoder, category_names: Sequence[str]) -> CategoryMemory | None:
        """The cached memory; `None` if there is none or it is not usable (damaged, of an older schema, exchanged)."""
        try:
            memory = self._open(folder)
            self._check_fits(memory, encoder, category_names, folder)
        except MissingAssetError:
            return None
        except MemoryMismatchError as error:
            logger.warning("%s (building the cached memory anew)", error)
            return None
        return memory

    def _build_once(self, folder: Path, encoder: EntryEncoder, category_names: Sequence[str]) -> CategoryMemory:
        with _building(folder) as can_keep:
            built_meanwhile = self._open_cached(folder, encoder, category_names) if can_keep else None
            if built_meanwhile is not None:
                return built_meanwhile
            groups, parts = self.groups(category_names), folder.with_name(folder.name + ".parts")
            vectors = encode_groups(encoder, groups, parts_dir=parts if can_keep else None)
            memory = CategoryMemory(
                text_entries(groups, vectors),
                category_names,
                info=self.info(encoder),
                aggregation=self.aggregation,
                text_weight=self.text_weight,
                temperature=self.temperature,
            )
            if not can_keep:
                return memory
            try:
                save_memory(memory, folder)
                shutil.rmtree(parts, ignore_errors=True)
                return self._open(folder)
            except (ConfigError, MemoryMismatchError) as error:
                _warn_not_kept(folder, error)
                return memory


@contextmanager
def _building(folder: Path) -> Iterator[bool]:
    """Hold the place of a memory, so that one process builds it; gives whether it can be kept there.

    The lock is released by the kernel when its holder dies.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.build.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is building the memory %s; waiting for it", folder)
            lock.acquire()
    except OSError as error:
        _warn_not_kept(folder, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _warn_not_kept(folder: Path, error: Exception) -> None:
    logger.warning(
        "the memory cannot be kept in %s (%s), so it is built in every run; set cache_dir or RAR_MMDET_CACHE to a "
        "folder that can be written",
        folder.parent,
        error,
    )


def _numbered(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each name, cleaned, and how many equal ones come before it."""
    seen: Counter[str] = Counter()
    for name in map(clean_name, names):
        yield name, seen[name]
        seen[name] += 1


def _short(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 2:
        return f"{list(value[:2])} and {len(value) - 2} more"
    return repr(list(value) if isinstance(value, tuple) else value)
