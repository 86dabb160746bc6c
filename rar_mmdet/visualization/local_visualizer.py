"""MMDetection's visualizer, fit for detections with many labels for each box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.visualization.utils import tensor2ndarray
from torch import Tensor

from rar_mmdet.drawing import label_place
from rar_mmdet.registry import VISUALIZERS

__all__ = ["RecognitionVisualizer"]

_USUAL_SIDE = 480  # px of the shorter side for which MMDetection's letters were chosen (ours)
_SMALLEST_LETTERS = 6.0  # points; below, nobody reads them
_MARGIN = 2.0  # px around a text: the pad of its black box


@VISUALIZERS.register_module()
class RecognitionVisualizer(DetLocalVisualizer):
    """`DetLocalVisualizer` that draws the best labels of each box, readable at any size of the image.

    RAR emits hundreds of labels for one image, which piled on one another say nothing. Labels read "retrieved → ranked"
    where the ranker changed the first place (field `label_names`); letters grow with the image, underscores are shown
    as spaces, and labels stay inside the image, above their box where there is room.

    Probabilities over a large vocabulary rarely reach MMDetection's usual threshold of 0.3: the configs of this project
    set `score_thr=0.0` for `DetVisualizationHook`, and `DetInferencer` takes `pred_score_thr=0.0`.

    Args:
        name: as in `DetLocalVisualizer`.
        labels_per_box: how many of a box's labels are drawn, best first.
        min_score: labels below are not drawn, whatever threshold the caller has.
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

    def best_of_each_box(self, sample: DetDataSample, threshold: float = 0.0) -> DetDataSample:
        """A copy with the `labels_per_box` best detections of each box; samples of other models are left alone.

        Args:
            sample: predictions; those of this project's models have `region_ids`.
            threshold: least score, if it is above `min_score`.
        """
        found = sample.get("pred_instances", None)
        if found is None or "region_ids" not in found:
            return sample
        least = max(self.min_score, threshold)
        seen: dict[int, int] = {}
        keep = []
        scores = found.scores.tolist()
        for row, region in enumerate(found.region_ids.tolist()):  # best first
            if seen.get(region, 0) < self.labels_per_box and scores[row] >= least:
                seen[region] = seen.get(region, 0) + 1
                keep.append(row)
        copy = sample.new()
        copy.pred_instances = found[torch.tensor(keep, dtype=torch.int64, device=found.scores.device)]
        return copy

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = 0.0,
        step: int = 0,
    ) -> None:
        """As in `DetLocalVisualizer`, but for the default of `pred_score_thr`, below which detections are not drawn."""
        if data_sample is not None:
            chosen = self.best_of_each_box(data_sample, pred_score_thr)
            if chosen is not data_sample:
                pred_score_thr = -1.0  # MMDetection draws what is above it, and chosen has been already
            data_sample = chosen
        meta: dict[str, Any] = getattr(self, "dataset_meta", None) or {}
        palette = meta.get("palette")
        if isinstance(palette, list | tuple) and len(palette) <= _largest_label(data_sample):
            # A detector's checkpoint brings the palette of its own, smaller set of classes.
            self.dataset_meta = {**meta, "palette": "random"}
        super().add_datasample(
            name, image, data_sample, draw_gt, draw_pred, show, wait_time, out_file, pred_score_thr, step
        )

    def draw_texts(
        self,
        texts: str | list[str],
        positions: np.ndarray | Tensor,
        font_sizes: int | float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> RecognitionVisualizer:
        """As in MMEngine's `Visualizer`; a single text is scaled with the image and kept inside it."""
        if isinstance(texts, str) and not isinstance(font_sizes, Sequence):
            size = self._default_font_size if font_sizes is None else font_sizes
            texts, size, label_wh = self._fit(texts.replace("_", " "), float(size))
            x, y = np.asarray(tensor2ndarray(positions), dtype=np.float64).reshape(2).tolist()
            if kwargs.get("horizontal_alignments") == "center":
                half = label_wh[0] / 2
                x = min(max(x, half), max(half, self.width - half))
            else:
                x, y = label_place((x, y), label_wh, (self.width, self.height))
            positions, font_sizes = np.array([x, y]), size
        super().draw_texts(texts, positions, font_sizes=font_sizes, **kwargs)
        return self

    def _fit(self, text: str, size: float) -> tuple[str, float, tuple[float, float]]:
        """The text, its size in points, and its width and height in pixels, such that it is no wider than the image."""
        size = max(_SMALLEST_LETTERS, size * min(self.width, self.height) / _USUAL_SIDE)
        width, height = self._measure(text, size)
        if width > self.width:
            size = max(_SMALLEST_LETTERS, size * self.width / width)
            width, height = self._measure(text, size)
        while width > self.width and len(text) > 2:
            text = text[:-2] + "…"
            width, height = self._measure(text, size)
        return text, size, (width, height)

    def _measure(self, text: str, size: float) -> tuple[float, float]:
        renderer = self.fig_save_canvas.get_renderer()
        width, height, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size), False)
        return width + 2 * _MARGIN, height + 2 * _MARGIN


def _largest_label(sample: DetDataSample | None) -> int:
    instances = [sample.get(field) for field in ("gt_instances", "pred_instances") if sample is not None]
    labels = [found.labels for found in instances if found is not None and "labels" in found]
    return max((int(values.max()) for values in labels if len(values)), default=-1)
