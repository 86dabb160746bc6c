"""What our code costs beside the models: 1,000 proposals of one image through the RoI head, on the demo world's models.

    python benchmarks/head.py [--proposals 1000] [--images 2] [--json FILE]

`own_share`: the part of an image's time that is neither the forward pass of detector, encoder nor ranker, but
cropping, search, fusion, NMS, packing; the aim is below 0.10. Also: the share of a run in which the model waits for
data, without dataloader workers and with two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "detectors" / "rar_faster-rcnn_demo.py"


class Clock:
    """Wall time by part, around methods of live objects; time inside another timed part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[float] = []

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Time `owner.method` as `part`."""
        original: Callable = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._open.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self._open.pop()
                if self._open:
                    self._open[-1] += spent

        object.__setattr__(owner, method, timed)  # croppers are frozen


def build(data: str, proposals: int, with_ranker: bool) -> tuple[torch.nn.Module, torch.utils.data.Dataset]:
    """The demo's detector, all proposals recognised, and the demo world's test split."""
    config = Config.fromfile(CONFIG)
    recognizer = config.model.roi_head.recognizer
    recognizer.vocabulary = str(Path(data) / "annotations" / "lvis_demo_test.json")
    if not with_ranker:
        del recognizer["ranker"]
    config.model.roi_head.selection = {"max_regions": proposals}
    config.test_dataloader.dataset.data_root = data
    return MODELS.build(config.model).eval(), DATASETS.build(config.test_dataloader.dataset)


def fixed_proposals(num: int, sample: Any, seed: int) -> InstanceData:
    """Random boxes in the input frame: an untrained RPN would not give as many after its NMS."""
    generator = torch.Generator().manual_seed(seed)
    height, width = sample.img_shape
    centre = torch.rand(num, 2, generator=generator) * torch.tensor([width, height])
    half = 8 + torch.rand(num, 2, generator=generator) * 60
    boxes = torch.cat([centre - half, centre + half], dim=1).clamp_min(0)
    boxes[:, 2:] = torch.minimum(boxes[:, 2:], torch.tensor([width, height], dtype=torch.float32))
    return InstanceData(bboxes=boxes, scores=torch.rand(num, generator=generator))


@torch.no_grad()
def own_share(args: argparse.Namespace) -> dict[str, float]:
    """Seconds per image by part, and our share."""
    model, dataset = build(args.data, args.proposals, with_ranker=not args.no_ranker)
    clock = Clock()
    recognizer = model.roi_head.branch.recognizer
    rpn = model.rpn_head.predict

    def predict_rpn(x: Any, samples: Any, rescale: bool = False) -> list[InstanceData]:
        rpn(x, samples, rescale=rescale)
        return [fixed_proposals(args.proposals, sample, i) for i, sample in enumerate(samples)]

    model.rpn_head.predict = predict_rpn
    # Loads models and memory; another image, or the ranker would know the answers already.
    model.test_step(pseudo_collate([dataset[args.images]]))
    clock.wrap(model, "extract_feat", "detector")
    clock.wrap(model.rpn_head, "predict", "detector")
    clock.wrap(model.data_preprocessor, "forward", "detector")
    clock.wrap(recognizer.encoder, "encode_images", "encoder")
    if recognizer.ranker is not None:
        clock.wrap(recognizer.ranker, "rank", "ranker")
        clock.wrap(recognizer.ranker_cropper, "crop", "ranker_crop")
    clock.wrap(recognizer.cropper, "crop", "crop")
    clock.wrap(recognizer.memory, "search", "search")
    clock.wrap(recognizer, "_pack", "emit")
    batch = pseudo_collate([dataset[i] for i in range(args.images)])
    start = time.perf_counter()
    model.test_step(batch)
    total = time.perf_counter() - start
    parts = {part: seconds / args.images for part, seconds in clock.seconds.items()}
    models = sum(parts.get(part, 0.0) for part in ("detector", "encoder", "ranker"))
    per_image = total / args.images
    return {f"seconds_{k}": v for k, v in parts.items()} | {
        "seconds_per_image": per_image,
        "own_share": 1 - models / per_image,
    }


@torch.no_grad()
def waiting_share(args: argparse.Namespace, workers: int) -> float:
    """The share of a run's time in which the model waits for data."""
    model, dataset = build(args.data, 30, with_ranker=False)
    dataset = torch.utils.data.Subset(dataset, range(args.loader_images))
    model.test_step(pseudo_collate([dataset[0]]))
    loader = DataLoader(dataset, 4, num_workers=workers, collate_fn=pseudo_collate)
    waited, start = 0.0, time.perf_counter()
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return waited / (time.perf_counter() - start)
        model.test_step(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/demo/", help="the demo world")
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2, help="images of the batch")
    parser.add_argument("--loader-images", type=int, default=40, help="images of the dataloader's measurement")
    parser.add_argument("--no-ranker", action="store_true", help="retrieval only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not (Path(args.data) / "annotations" / "lvis_demo_test.json").is_file():
        parser.error(f"no demo world in {args.data}: python demo/make_world.py --out {args.data} --seed 0")
    register_all_modules(init_default_scope=True)
    figures = own_share(args)
    figures["waiting_share_0_workers"] = waiting_share(args, 0)
    figures["waiting_share_2_workers"] = waiting_share(args, 2)
    for name, value in figures.items():
        print(f"{name:28}{value:10.4f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
