"""A page to look through labels, the doubtful ones first: one file, no server, nothing fetched from elsewhere."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from tqdm import tqdm

from rar_mmdet.drawing import crop_address
from rar_mmdet.errors import RecordFileError
from rar_mmdet.files.images import read_image
from rar_mmdet.files.pages import render_page
from rar_mmdet.labelling.decisions import Decision
from rar_mmdet.labelling.labeller import LabelRun, PhotoState
from rar_mmdet.records import RegionRecord

__all__ = ["LISTED", "review_order", "write_review"]

TEMPLATE = Path(__file__).with_name("review.html.jinja")
LISTED = 5  # classes to choose from by key
SIDE = 96  # longest side of a crop in pixels: 5,000 of them stay below 30 MB
QUALITY = 70
CONTEXT = 0.15  # of the box's sides, shown around it


def review_order(run: LabelRun, most: int | None = None) -> list[tuple[Decision, PhotoState, RegionRecord]]:
    """The most doubtful regions with what they are called, most doubtful first; equal ones in the order of photos.

    Args:
        run: whose photos are recognised.
        most: at most so many.
    """

    def entries() -> Any:
        for place, (state, decided) in enumerate(run.decided()):
            for record, decision in decided:
                yield -decision.doubt, place, record.region, decision, state, record

    found = sorted(entries(), key=_order) if most is None else heapq.nsmallest(most, entries(), key=_order)
    return [entry[3:] for entry in found]


def _order(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return entry[:3]


def write_review(run: LabelRun, file: Path, most: int = 5000, title: str = "") -> int:
    """Write the page; how many regions are on it.

    Args:
        run: whose photos are recognised.
        file: the page; photos are found relative to it, crops are in it.
        most: regions, the most doubtful ones.
        title: of the page; the folder of photos by default.

    Raises:
        RecordFileError: it cannot be written.
    """
    queue = review_order(run, most)
    crops: dict[tuple[str, int], str] = {}
    by_photo: dict[str, list[RegionRecord]] = {}
    for _, state, record in queue:
        by_photo.setdefault(state.name, []).append(record)
    for name, records in tqdm(by_photo.items(), desc="review", unit="photo", disable=None, leave=False):
        pixels = read_image(run.photos / name)
        for record in records:
            crops[name, record.region] = crop_address(
                pixels, record.box_xyxy, side=SIDE, context=CONTEXT, quality=QUALITY
            )
    corrected = run.corrections()
    items = [_item(run, file, *entry, crops[entry[1].name, entry[2].region]) for entry in queue]
    for item in items:
        if (item["photo"], item["region"]) in corrected:
            item["label"] = corrected[item["photo"], item["region"]]
    key = hashlib.sha256(repr((run.photos.resolve(), run.labeller.words)).encode()).hexdigest()[:16]
    content = {"key": key, "classes": list(run.labeller.words.classes), "items": items}
    # Nothing in JSON can end the element that holds it.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = render_page(TEMPLATE, title=title or run.photos.name, data=Markup(text))
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RecordFileError(f"the review page {file} cannot be written: {error.strerror}") from error
    return len(items)


def _item(
    run: LabelRun, file: Path, decision: Decision, state: PhotoState, record: RegionRecord, crop: str
) -> dict[str, Any]:
    photo = os.path.relpath(run.photos / state.name, file.parent).replace(os.sep, "/")
    return {
        "photo": state.name,
        "region": record.region,
        "box": [round(v, 1) for v in record.box_xyxy],
        "wh": [state.width, state.height],
        "file": quote(photo),
        "crop": crop,
        "label": decision.class_id,
        "best": [[row, round(score, 3)] for row, score in decision.best[:LISTED]],
    }
