"""One page of one or several runs: static and self-contained; only sorting and filters need JavaScript."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rar_mmdet.files.pages import render_page
from rar_mmdet.report.confusions import NameTree, classes_of, confusions
from rar_mmdet.report.figures import Figure
from rar_mmdet.report.numbers import percent, tables_of
from rar_mmdet.report.panels import Pictures, choose, panel_of
from rar_mmdet.report.runs import Run

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("page.html.jinja")
PICTURED_PAIRS = 200  # of names taken for others
SHOWN_CLASSES = 2000  # most mistakes first; more are too many for a browser, and in the CSV


def render(
    runs: Sequence[Run],
    figures: Sequence[tuple[Figure, Path]],
    *,
    title: str,
    panels: int,
    seed: int,
    beside: Path,
    tree: NameTree | None = None,
) -> str:
    """The page as text.

    Args:
        runs: one or more.
        figures: each with the SVG it was written to.
        title: of the page.
        panels: regions of each kind to show.
        seed: of those at random.
        beside: folder of the page, which the paths it names are relative to.
        tree: of the names.
    """
    return render_page(
        TEMPLATE,
        title=title,
        runs=[_run_of(run, panels, seed) for run in runs],
        tables=tables_of(runs, tree),
        figures=[
            {
                "title": figure.title,
                "caption": figure.caption,
                "source": "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
                "data": path.with_suffix(".csv").relative_to(beside).as_posix(),
            }
            for figure, path in figures
        ],
    )


def _run_of(run: Run, panels: int, seed: int) -> dict[str, Any]:
    pictures = Pictures()
    chosen = choose(run, panels, seed)
    pairs = confusions(run)
    wanted = [*chosen.values(), np.array([pair["row"] for pair in pairs[:PICTURED_PAIRS]], np.int64)]
    rows = np.unique(np.concatenate(wanted))
    classes = classes_of(run)
    shown = dict(zip(rows.tolist(), (panel_of(r, pictures) for r in run.records(rows)), strict=True))
    return {
        "name": run.name,
        "regions": len(run),
        "objects": int(run.has_truth.sum()),
        "missing": len(pictures.missing),
        "protocol": _protocol_lines(run.summary),
        "settings": json.dumps(run.summary["protocol"], indent=2) if "protocol" in run.summary else "",
        "panels": [{"title": t, "panels": [shown[row] for row in found.tolist()]} for t, found in chosen.items()],
        "classes": [
            {
                "name": row.name,
                "objects": row.objects,
                "before": percent(row.before),
                "after": percent(row.after),
                "taken_for": f"{row.taken_for} ({row.times})" if row.times else "",
            }
            for row in classes[:SHOWN_CLASSES]
        ],
        "all_classes": len(classes),
        "confusions": [pair | {"picture": shown[pair["row"]].picture} for pair in pairs],
    }


def _protocol_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know first."""
    protocol = summary.get("protocol", {})
    lines: list[tuple[str, Any]] = [
        (key, summary[key]) for key in ("config", "checkpoint", "num_images", "first_images_only") if key in summary
    ]
    if "boxes" in protocol:
        boxes = protocol["boxes"]
        lines.append(("boxes", boxes if isinstance(boxes, str) else json.dumps(boxes)))
    lines += [line for used in protocol.get("used", []) for line in used.items()]
    for where, settings in protocol.get("recognizers", {}).items():
        for part in ("cropper", "encoder", "memory", "ranker", "fusion", "emission", "num_candidates"):
            if settings.get(part) is not None:
                lines.append((f"{where}.{part}", json.dumps(settings[part])))
    lines += [("evaluator", json.dumps(one)) for one in protocol.get("evaluators", [])]
    lines += [(f"SHA-256 of {file}", value) for file, value in protocol.get("annotations_sha256", {}).items()]
    model = summary.get("report", {}).get("ranker", {}).get("model")
    if isinstance(model, dict):
        lines.append(("ranker's model", json.dumps({key: model.get(key) for key in ("id", "weights", "dtype")})))
    if "versions" in protocol:
        lines.append(("versions", ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())))
    lines += [(key, protocol[key]) for key in ("device",) if key in protocol]
    if "seconds_per_image" in summary:
        lines.append(("seconds per image", f"{summary['seconds_per_image']:.3f}"))
    return [(key, str(value)) for key, value in lines if value is not None]
