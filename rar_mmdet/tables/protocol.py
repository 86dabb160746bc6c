"""What a test's numbers belong to, in one sentence, from its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rar_mmdet.components import build_component

__all__ = ["protocol_lines", "protocol_of"]

SHOWN_HASH = 12  # hex digits of a file's SHA-256


def protocol_of(summary: Mapping[str, Any]) -> str:
    """Emission, templates, temperature, fusion, evaluator, photos, annotations, versions and device of a test.

    Args:
        summary: its summary.json.
    """
    protocol = summary.get("protocol") or {}
    told: list[str] = []
    for recognizer in (protocol.get("recognizers") or {}).values():
        told += _recognizer(recognizer)
    told.append(" and ".join(str(one.get("type", "")).removeprefix("rar_mmdet.") for one in _evaluators(protocol)))
    subset = " (the first ones alone)" if summary.get("first_images_only") else ""
    told.append(f"{summary.get('num_images', '?')} photos{subset}")
    told += [f"{_name(file)} {sha[:SHOWN_HASH]}" for file, sha in (protocol.get("annotations_sha256") or {}).items()]
    versions = protocol.get("versions") or {}
    told.append(", ".join(f"{name} {versions[name]}" for name in ("rar_mmdet", "torch", "mmdet") if name in versions))
    told.append(str(protocol.get("device", "")))
    return "; ".join(text for text in told if text)


def protocol_lines(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A line for each protocol that occurs, with the rows it is of.

    Args:
        summaries: row -> its summary.json.
    """
    rows: dict[str, list[str]] = {}
    for row, summary in summaries.items():
        rows.setdefault(protocol_of(summary), []).append(row)
    if len(rows) == 1:
        return tuple(rows)
    return tuple(f"{', '.join(names)}: {protocol}" for protocol, names in rows.items())


def _recognizer(settings: Mapping[str, Any]) -> list[str]:
    memory = settings.get("memory") or {}
    temperature = memory.get("temperature")
    emission = settings.get("emission")
    told = [
        repr(build_component(emission, "emission", "TopPairs")) if emission else "the model's own emission",
        f"templates {_templates(memory)}",
        "the encoder's own temperature" if temperature is None else f"temperature {temperature:g}",
    ]
    if settings.get("ranker"):
        fusion = settings.get("fusion")
        told.append(repr(build_component(fusion, "fusion")) if fusion else "LogLikFusion() by default")
        told.append(f"K = {settings.get('num_candidates', 5)}")
    return told


def _templates(memory: Mapping[str, Any]) -> str:
    templates = memory.get("templates") or "single"
    return templates if isinstance(templates, str) else f"{len(templates)} of the config"


def _evaluators(protocol: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [one for one in protocol.get("evaluators") or [] if isinstance(one, Mapping)]


def _name(file: str) -> str:
    return file.replace("\\", "/").rsplit("/", 1)[-1]
