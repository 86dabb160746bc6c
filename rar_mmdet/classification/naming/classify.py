"""`rar-mmdet classify CONFIG --names FILE ...`: what found names are worth on the test part."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.classification.metrics import SENTENCE_ENCODERS, SentenceEncoder
from rar_mmdet.classification.naming.found import FoundNames, read_found
from rar_mmdet.classification.naming.run import NamesRun
from rar_mmdet.classification.naming.scores import RANKED, NamesTable, Scorer
from rar_mmdet.classification.naming.settings import NamesSettings
from rar_mmdet.classification.naming.ways import WAYS
from rar_mmdet.classification.recording import Recipe
from rar_mmdet.components import build_component, nearest
from rar_mmdet.errors import ConfigError, MissingAssetError
from rar_mmdet.memory.cache import default_cache_dir
from rar_mmdet.memory.encode import PromptGroup, encode_groups

__all__ = ["classify_names"]

OWN_TEXTS = "encoder"  # sACC by the texts of the config's encoder


def classify_names(
    args: argparse.Namespace, config: Mapping[str, Any], recipe: Recipe, out: Path, ranker_told: str | None
) -> tuple[NamesTable, str]:
    """Make or read the records, write table.txt and summary.json; the table, and it as text.

    Args:
        args: of `rar-mmdet classify`.
        config: as read.
        recipe: its parts.
        out: folder of the run.
        ranker_told: the ranker's settings as text.

    Raises:
        ConfigError: two files of one finder and draw, an unknown row, or settings that do not fit.
        DatasetError: a file of names is of another set.
        MissingAssetError: weights are missing.
    """
    settings = NamesSettings.of(config)
    ways, ranked = _ways(args.rows, recipe.ranker is not None)
    found = _by_label([(file, read_found(file, recipe.dataset)) for file in args.names])
    voter = _encoder(settings.voter, "names.voter")
    finer_encoder = _encoder(settings.finer_encoder, "names.finer_encoder")
    encoders = [one for one in (recipe.encoder, voter, finer_encoder) if one is not None]
    parts = [*encoders, *([recipe.ranker] if ranked and recipe.ranker is not None else [])]
    missing = [line for part in parts for line in part.missing_assets()]
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sentences = None if settings.sentence_encoder == OWN_TEXTS else SentenceEncoder(settings.sentence_encoder)
    missing += [] if sentences is None else [f"{line} (for sACC)" for line in sentences.missing_assets()]
    if missing:
        raise MissingAssetError("; ".join(missing))
    for part in parts:
        part.load(device)
    cache_dir = default_cache_dir().parent / "photos"
    run = NamesRun(recipe, out, cache_dir=cache_dir, voter=voter, finer_encoder=finer_encoder, limit=args.limit)
    nouns = settings.read_nouns()
    run.claim(
        {
            "names": {label: [one.discovery["sha256"] for one in draws] for label, draws in found.items()},
            "finders": {label: dict(draws[0].finder) for label, draws in found.items()},
            "vocabularies": {label: [one.vocabulary for one in draws] for label, draws in found.items()},
            "encoder": recipe.encoder.fingerprint,
            "voter": None if voter is None else voter.fingerprint,
            "finer_encoder": None if finer_encoder is None else finer_encoder.fingerprint,
            "cropper": repr(recipe.cropper),
            "ranker": ranker_told,
            "ranker_cropper": repr(recipe.ranker_cropper),
            "fusion": repr(recipe.fusion),
            "num_candidates": recipe.num_candidates,
            "nouns": None if nouns is None else len(nouns),
            "limit": args.limit,
        }
    )
    labels = [example.label for example in run.test]
    encode = _own_texts(recipe) if sentences is None else sentences
    scorer = Scorer(labels, recipe.dataset.display_names, encode)
    table = run.table(found, scorer, ways=ways, ranked=ranked, nouns=nouns)
    by = _told_sentences(settings.sentence_encoder)
    text = f"{table.text()}\n\nsACC by {by}; names in lower case, underscores as blanks"
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    summary = {**table.summary(), "sentence_encoder": settings.sentence_encoder}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return table, text


def _ways(wanted: Sequence[str], has_ranker: bool) -> tuple[list[str], list[str]]:
    """The ways, and those of them that the ranker is put on."""
    if "all" in wanted:
        return list(WAYS), list(WAYS) if has_ranker else []
    ways = list(dict.fromkeys(row.removesuffix(RANKED) for row in wanted))
    ranked = [way for way in ways if way + RANKED in wanted]
    for way in ways:
        if way not in WAYS:
            known = ", ".join(WAYS)
            raise ConfigError(f"there is no way {way!r} to use names{nearest(way, list(WAYS))} Known: {known}")
    if ranked and not has_ranker:
        raise ConfigError(f"row {ranked[0] + RANKED!r} needs a `ranker` in the config")
    return ways, ranked


def _by_label(files: Sequence[tuple[Path, FoundNames]]) -> dict[str, list[FoundNames]]:
    """Label -> what was found on each draw, in the order of their seeds."""
    found: dict[str, dict[Any, FoundNames]] = defaultdict(dict)
    for file, one in files:
        label = str(one.finder.get("label", one.finder.get("finder")))
        draw = one.discovery.get("seed")
        if draw in found[label]:
            raise ConfigError(f"{file}: another file holds {label!r} of draw {draw} too; find one with another --label")
        found[label][draw] = one
    return {label: [draws[seed] for seed in sorted(draws, key=str)] for label, draws in found.items()}


def _encoder(given: Mapping[str, Any] | None, where: str) -> Any:
    return None if given is None else build_component(given, where)


def _own_texts(recipe: Recipe) -> Callable[[Sequence[str]], Tensor]:
    def encode(texts: Sequence[str]) -> Tensor:
        groups = [
            PromptGroup(i, "sACC", tuple(t.replace("{}", text) for t in recipe.dataset.templates))
            for i, text in enumerate(texts)
        ]
        return encode_groups(recipe.encoder, groups).cpu()

    return encode


def _told_sentences(name: str) -> str:
    if name == OWN_TEXTS:
        return "the texts of the run's own encoder: it compares with nothing published"
    return name if name in SENTENCE_ENCODERS else f"{name}, mean pooling"
