"""MMDetection's visualizer, fit for detections with many labels for each box."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer

from rar_mmdet.registry import VISUALIZERS

__all__ = ["RecognitionVisualizer"]


@VISUALIZERS.register_module()
class RecognitionVisualizer(DetLocalVisualizer):
    """`DetLocalVisualizer` that draws the best labels of each box, whatever their scores.

    RAR emits hundreds of labels for one image, with probabilities over the whole vocabulary; the usual score threshold
    of 0.3 hides nearly all of them or, lowered, piles labels on one another. Labels read "retrieved → ranked" where the
    ranker changed the first place (field `label_names`).

    Args:
        name: as in `DetLocalVisualizer`.
        labels_per_box: how many of a box's labels are drawn, best first.
        min_score: labels below are not drawn; takes the place of the hook's `score_thr`.
        vis_backends: as in `DetLocalVisualizer`.
        save_dir: as in `DetLocalVisualizer`.
        line_width: as in `DetLocalVisualizer`.
        alpha: as in `DetLocalVisualizer`.
    """

    def __init__(
        self,
        name: str = "visualizer",
        *,
        labels_per_box: int = 1,
        min_score: float = 0.0,
        vis_backends: list[dict] | None = None,
        save_dir: str | None = None,
        line_width: int | float = 2,
        alpha: float = 0.8,
    ) -> None:
        super().__init__(name=name, vis_backends=vis_backends, save_dir=save_dir, line_width=line_width, alpha=alpha)
        self.labels_per_box, self.min_score = labels_per_box, min_score

    def best_of_each_box(self, sample: DetDataSample) -> DetDataSample:
        """A copy with the `labels_per_box` best detections of each box; samples of other models are left alone."""
        found = sample.get("pred_instances", None)
        if found is None or "region_ids" not in found:
            return sample
        seen: dict[int, int] = {}
        keep = []
        scores = found.scores.tolist()
        for row, region in enumerate(found.region_ids.tolist()):  # best first
            if seen.get(region, 0) < self.labels_per_box and scores[row] >= self.min_score:
                seen[region] = seen.get(region, 0) + 1
                keep.append(row)
        copy = sample.new()
        copy.pred_instances = found[torch.tensor(keep, dtype=torch.int64, device=found.scores.device)]
        return copy

    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: DetDataSample | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """As in `DetLocalVisualizer`; its arguments are passed on."""
        if data_sample is not None:
            chosen = self.best_of_each_box(data_sample)
            if chosen is not data_sample:
                kwargs["pred_score_thr"] = 0.0
            data_sample = chosen
        meta: dict[str, Any] = getattr(self, "dataset_meta", None) or {}
        palette = meta.get("palette")
        if isinstance(palette, list | tuple) and len(palette) <= _largest_label(data_sample):
            # A detector's checkpoint brings the palette of its own, smaller set of classes.
            self.dataset_meta = {**meta, "palette": "random"}
        super().add_datasample(name, image, data_sample, *args, **kwargs)


def _largest_label(sample: DetDataSample | None) -> int:
    instances = [sample.get(field) for field in ("gt_instances", "pred_instances") if sample is not None]
    labels = [found.labels for found in instances if found is not None and "labels" in found]
    return max((int(values.max()) for values in labels if len(values)), default=-1)
