"""Tiny worlds, samples, detectors and a stand-in ranker for tests of the MMDetection face; ours and users'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmdet
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict

from rar_mmdet.testing import FakeRanker, make_boxes, make_image

__all__ = ["FakeRanker", "fake_recognizer", "make_batch", "stock_model", "write_lvis_world"]


def fake_recognizer(vocabulary: str | Sequence[str], ranker: bool = True, **changes: Any) -> dict[str, Any]:
    """Config of a `RegionRecognizer` of fakes: no weights, fast, deterministic."""
    config: dict[str, Any] = {
        "vocabulary": vocabulary if isinstance(vocabulary, str) else list(vocabulary),
        "cropper": {"type": "RegionCropper", "size": 32},
        "encoder": {"type": "rar_mmdet.testing.FakeEncoder"},
        "memory": {"type": "TextMemory"},
        "num_candidates": 3,
    }
    if ranker:
        config["ranker"] = {"type": "rar_mmdet.models.testing.FakeRanker"}
    return config | changes


def write_lvis_world(
    root: str | Path,
    num_images: int = 5,
    num_categories: int = 12,
    image_hws: Sequence[tuple[int, int]] = ((60, 80), (90, 70), (64, 64)),
    empty_image: int | None = 1,
) -> Path:
    """A few random images with boxes in true LVIS v1 format, which is COCO's as well.

    Args:
        root: folder for `val2017/*.png` and `annotations/lvis_demo_test.json`.
        num_images: images.
        num_categories: categories, in turn rare, common and frequent.
        image_hws: sizes, in turn.
        empty_image: index of an image without annotations.

    Returns:
        Path of the annotation file.
    """
    root = Path(root)
    (root / "val2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(num_images):
        height, width = image_hws[index % len(image_hws)]
        name = f"val2017/{index:06d}.png"
        cv2.imwrite(str(root / name), make_image(height, width, seed=index)[..., ::-1])
        images.append(
            {
                "id": index + 1,
                "height": height,
                "width": width,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/{name}",
                "neg_category_ids": [1, 2],
                "not_exhaustive_category_ids": [],
            }
        )
        for x1, y1, x2, y2 in [] if index == empty_image else make_boxes(3, height, width, seed=index).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": len(annotations) % num_categories + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    "iscrowd": 0,
                }
            )
    categories = [
        {
            "id": i + 1,
            "name": f"thing_{i + 1}",
            "frequency": "rcf"[i % 3],
            "image_count": 1,
            "instance_count": 1,
            "synonyms": [f"thing_{i + 1}"],
            "synset": f"thing.n.{i + 1:02d}",
            "def": "",
        }
        for i in range(num_categories)
    ]
    path = root / "annotations" / "lvis_demo_test.json"
    world = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(world), encoding="utf-8")
    return path


def make_batch(
    image_hws: Sequence[tuple[int, int]],
    input_hws: Sequence[tuple[int, int]] | None = None,
    flips: Sequence[str | None] | None = None,
) -> dict[str, list]:
    """A batch as a dataloader gives it: images resized (and flipped) to `input_hws`, data samples with `ori_img`.

    Args:
        image_hws: sizes of the original images.
        input_hws: sizes of the network inputs; the originals' by default.
        flips: 'horizontal', 'vertical', 'diagonal' or `None`, for each image.
    """
    inputs, samples = [], []
    for i, (height, width) in enumerate(image_hws):
        image = make_image(height, width, seed=i)
        in_height, in_width = input_hws[i] if input_hws else (height, width)
        resized = cv2.resize(image, (in_width, in_height))
        flip = flips[i] if flips else None
        if flip is not None:
            axes = {"horizontal": (1,), "vertical": (0,), "diagonal": (0, 1)}[flip]
            resized = np.flip(resized, axes)
        inputs.append(torch.from_numpy(np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1))))
        sample = DetDataSample(
            metainfo={
                "img_id": i,
                "img_path": None,
                "ori_shape": (height, width),
                "img_shape": (in_height, in_width),
                "batch_input_shape": (in_height, in_width),
                "scale_factor": (in_width / width, in_height / height),
                "flip": flip is not None,
                "flip_direction": flip,
            }
        )
        sample.set_field(torch.from_numpy(image), "ori_img")
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def stock_model(config: str, small_backbone: bool = True) -> ConfigDict:
    """The model of one of MMDetection's own configs, randomly initialised; ResNets made thin.

    Args:
        config: path below MMDetection's `configs`, such as 'retinanet/retinanet_r50_fpn_1x_coco.py'.
        small_backbone: whether a ResNet is replaced by one of 18 layers and 16 channels (the neck's inputs follow).
    """
    model = Config.fromfile(Path(mmdet.__path__[0]) / ".mim" / "configs" / config).model
    backbone = model.backbone
    backbone.pop("init_cfg", None)
    if small_backbone and backbone.type == "ResNet":
        backbone.depth, backbone.base_channels = 18, 16
        channels = [16, 32, 64, 128]
        model.neck.in_channels = [channels[i] for i in backbone.get("out_indices", (0, 1, 2, 3))]
    return model
