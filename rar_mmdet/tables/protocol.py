"""What a test's numbers belong to, in one sentence, from its summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["protocol_lines", "protocol_of"]

SHOWN_HASH = 12  # hex digits of a file's SHA-256


def protocol_of(summary: Mapping[str, Any]) -> str:
    """Emission, templates, temperature, fusion, evaluator, photos, boxes, annotations, versions and device of a test.

    Args:
        summary: its summary.json.
    """
    protocol = summary.get("protocol") or {}
    told: list[str] = []
    used = protocol.get("used") or []
    for settings, one in zip((protocol.get("recognizers") or {}).values(), used, strict=False):
        told += [one["emission"], f"templates {_templates(settings.get('memory') or {})}"]
        told += [f"temperature {one['temperature']:.4g}"] if "temperature" in one else []
        told += [one["fusion"], f"K = {one['num_candidates']}"] if "fusion" in one else []
    told.append(" and ".join(str(one.get("type", "")).removeprefix("rar_mmdet.") for one in _evaluators(protocol)))
    subset = " (the first ones alone)" if summary.get("first_images_only") else ""
    boxes = summary.get("metrics", {}).get("recognition/objects")
    told.append(f"{summary.get('num_images', '?')} photos{subset}{'' if boxes is None else f', {boxes:.0f} boxes'}")
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


def _templates(memory: Mapping[str, Any]) -> str:
    templates = memory.get("templates") or "single"
    return templates if isinstance(templates, str) else f"{len(templates)} of the config"


def _evaluators(protocol: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [one for one in protocol.get("evaluators") or [] if isinstance(one, Mapping)]


def _name(file: str) -> str:
    return file.replace("\\", "/").rsplit("/", 1)[-1]
