"""Train the proposals of the demo's Faster R-CNN: the RPN of configs/detectors/clip_faster-rcnn_demo.py, on the CPU.

    python demo/make_world.py --out data/demo --seed 0
    python demo/train_rpn.py                      # a few minutes on two cores; writes work_dirs/demo_rpn/rpn.pth
    python tools/test.py configs/detectors/rar_faster-rcnn_demo.py work_dirs/demo_rpn/rpn.pth

The RPN learns "an object is here" from the training split, whatever its category. A killed run goes on where its
last checkpoint stands.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "detectors" / "clip_faster-rcnn_demo.py"
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "Resize", "scale": (480, 360), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PackDetInputs"},
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/demo/", help="the demo world (default: data/demo/)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/demo_rpn/rpn.pth"), help="where the weights go")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build(config: Config, data: str) -> tuple[torch.nn.Module, torch.utils.data.Dataset]:
    """The detector without recognition, and the training split."""
    roi_head = config.model.roi_head
    # Two names and a stand-in encoder: the RoI head is not trained, and its weights are never asked for.
    roi_head.recognizer.vocabulary = ["a", "b"]
    dataset = DATASETS.build(
        config.test_dataloader.dataset
        | {
            "data_root": data,
            "ann_file": "annotations/lvis_demo_train.json",
            "pipeline": PIPELINE,
            "test_mode": False,
            "filter_cfg": {"filter_empty_gt": True},
        }
    )
    return MODELS.build(config.model), dataset


def rpn_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Objectness and box losses of the RPN; every object is of the one class "object"."""
    data = model.data_preprocessor(batch, training=True)
    for sample in data["data_samples"]:
        sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    losses = model.rpn_head.loss(model.extract_feat(data["inputs"]), data["data_samples"])
    return sum(torch.stack(list(value)).sum() for value in losses.values())


def main() -> None:
    args = parse_args()
    register_all_modules(init_default_scope=True)
    torch.manual_seed(args.seed)
    model, dataset = build(Config.fromfile(CONFIG), args.data)
    model.init_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.iterations, pct_start=0.1)
    state_file, done = args.out.with_suffix(".resume.pth"), 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True, collate_fn=pseudo_collate)
    with tqdm(total=args.iterations, initial=done, desc="RPN") as progress:
        while done < args.iterations:
            for batch in loader:
                loss = rpn_loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                done += 1
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
                if done % 200 == 0 and done < args.iterations:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save(state | {"schedule": schedule.state_dict(), "done": done}, state_file)
                if done == args.iterations:
                    break
    torch.save({"state_dict": model.state_dict()}, args.out)
    state_file.unlink(missing_ok=True)
    print(f"weights: {args.out}")


if __name__ == "__main__":
    main()
