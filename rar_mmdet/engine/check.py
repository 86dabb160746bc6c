"""`tools/test.py --check`: a few images end to end, and from them how long the whole run takes and what it asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from rar_mmdet.engine.recognition_hook import find_branches

__all__ = ["check_run"]

NUM_IMAGES = 4  # the first one loads the models, the others are timed; ours
SHOWN_REGIONS = 3


def check_run(runner: Runner) -> Iterator[str]:
    """Recognise a few images spread over the dataset; yields what to tell, line by line. Nothing is scored.

    Raises:
        RarError: what would stop the run.
    """
    runner.load_or_resume()
    model, dataset = runner.model.eval(), runner.test_dataloader.dataset
    total = len(dataset)
    branches = list(find_branches(model))
    for branch in branches:
        recognizer = branch.recognizer
        ranker = "no ranker" if recognizer.ranker is None else f"ranker {type(recognizer.ranker).__name__}"
        yield f"{total} images, {len(recognizer.category_names)} names, {ranker}"
    rows = sorted({round(i * (total - 1) / max(NUM_IMAGES - 1, 1)) for i in range(min(NUM_IMAGES, total))})
    seconds: list[float] = []
    for row in rows:
        start = time.perf_counter()
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[row]]))[0]
        seconds.append(time.perf_counter() - start)
        yield _tell(sample, seconds[-1], "with loading" if len(seconds) == 1 else "")
    timed = seconds[1:] or seconds
    per_image = sum(timed) / len(timed)
    whole = _duration(seconds[0] + per_image * (total - 1))
    yield f"the whole run: about {whole} ({per_image:.2f} s per image, one process)"
    for branch in branches:
        counts = branch.recognizer.ranker.counts if branch.recognizer.ranker is not None else {}
        questions = counts.get("asked", 0) / len(rows) * total
        if questions:
            each = questions / total
            yield f"questions to the ranker: about {questions:,.0f} ({each:.1f} per image); answers are kept"
        cost = {} if branch.recognizer.ranker is None else branch.recognizer.ranker.report().get("cost", {})
        if cost and counts.get("asked", 0):
            share = questions / counts["asked"]
            yield (
                f"cost: about {cost['spent'] * share:.2f} for {cost['input_tokens'] * share / 1e6:,.2f} million input "
                "tokens, at the prices of the config"
            )


def _tell(sample: Any, seconds: float, remark: str) -> str:
    """One image: where, how many regions, the first names."""
    found = sample.get("recognition", None)
    names = list(dict.fromkeys(sample.pred_instances.get("label_names", [])))[:SHOWN_REGIONS]
    image = sample.metainfo.get("img_path") or sample.metainfo.get("img_id")
    regions = 0 if found is None else len(found)
    remark = f" {remark}" if remark else ""
    return f"{image}: {regions} regions in {seconds:.2f} s{remark}; such as {', '.join(names) or 'none'}"


def _duration(seconds: float) -> str:
    """A time people can picture.

    >>> _duration(42), _duration(5400), _duration(200000)
    ('42 s', '1.5 h', '2.3 days')
    """
    for limit, unit, name in ((120, 1, "s"), (3600, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} days"
