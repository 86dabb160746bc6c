"""Train the demo's detector: a small RT-DETR of transformers' own classes that knows one thing, "an object is here".

    python demo/make_world.py --out data/demo --seed 0
    OMP_NUM_THREADS=1 python demo/train_detector.py      # weights/detector, under an hour on one CPU core

It stands in for RT-DETR, D-FINE or LLMDet where no weights can be downloaded, and knows no class: every object of the
training photos is an "object", so that names are the recogniser's business. Trained on the train split of the world
alone (400 photos, mirrored and cut at random). A killed run goes on where its last state stands.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm
from training import load_checkpoint, save_checkpoint, write_json
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

HERE = Path(__file__).resolve().parent
DOMAIN = 4204  # first word of every seed drawn here
NETWORK_HW = (288, 384)  # what the network sees; photos are 360 x 480
IOU_THRESHOLDS = torch.arange(0.5, 1.0, 0.05, dtype=torch.float64)


def build_model() -> RTDetrForObjectDetection:
    """The untrained network: about 1.5 million parameters, one class."""
    width = 96
    backbone = RTDetrResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[48, 96, 128],
        encoder_hidden_dim=width,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        decoder_in_channels=[width] * 3,
        d_model=width,
        decoder_ffn_dim=2 * width,
        decoder_attention_heads=4,
        decoder_layers=2,
        hidden_expansion=0.5,
        num_queries=100,
        num_denoising=50,
        id2label={0: "object"},
        label2id={"object": 0},
    )
    return RTDetrForObjectDetection(config)


def read_split(root: Path, split: str, folder: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Photos (N, H, W, 3) uint8 RGB of a split and their boxes, N of (G, 4) float32 xyxy in pixels."""
    data = json.loads((root / "annotations" / f"lvis_demo_{split}.json").read_text())
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + w, y + h])
    photos = [cv2.imread(str(root / folder / f"{image_id:012d}.jpg"))[..., ::-1] for image_id in boxes]
    return np.stack(photos), [np.array(rows, np.float32).reshape(-1, 4) for rows in boxes.values()]


def draw_view(rng: np.random.Generator, photo: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo cut and mirrored at random, at the network's size, and its boxes as cxcywh in [0, 1].

    Half of the views are the whole photo. Of an object cut by the view, what can be seen is the object; it is left
    out where that is less than a third.
    """
    height, width = photo.shape[:2]
    share = 1.0 if rng.random() < 0.5 else rng.uniform(0.55, 1.0)
    h, w = round(height * share), round(width * share)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    view = cv2.resize(photo[top : top + h, left : left + w], NETWORK_HW[::-1], interpolation=cv2.INTER_AREA)
    shift = np.array([left, top, left, top], np.float32)
    seen = np.clip(boxes - shift, 0, np.array([w, h, w, h], np.float32))
    size, seen_size = boxes[:, 2:] - boxes[:, :2], seen[:, 2:] - seen[:, :2]
    seen = seen[seen_size.prod(1) * 3 > size.prod(1)] / np.array([w, h, w, h], np.float32)
    if rng.random() < 0.5:
        view = view[:, ::-1]
        seen = np.stack([1 - seen[:, 2], seen[:, 1], 1 - seen[:, 0], seen[:, 3]], 1)
    return view, np.concatenate([(seen[:, :2] + seen[:, 2:]) / 2, seen[:, 2:] - seen[:, :2]], 1)


def as_pixels(views: list[np.ndarray]) -> Tensor:
    """(B, 3, h, w) float32 in [0, 1], as the processor that is saved with the weights makes them."""
    batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
    return batch.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def recall_at(
    model: nn.Module, processor: RTDetrImageProcessor, photos: np.ndarray, boxes: list[np.ndarray], limit: int = 100
) -> dict[str, float]:
    """Recall of the ``limit`` best boxes per photo: averaged over IoU .50:.05:.95, at IoU .5, and by COCO area."""
    model.eval()
    best, area = [], []
    for start in range(0, len(photos), 8):
        batch = list(photos[start : start + 8])
        output = model(**processor(batch, return_tensors="pt"))
        found = processor.post_process_object_detection(output, 0.0, [photo.shape[:2] for photo in batch])
        for one, truth in zip(found, boxes[start : start + 8], strict=True):
            order = one["scores"].argsort(descending=True)[:limit]
            ious = box_iou(torch.from_numpy(truth), one["boxes"][order])
            best.append(greedy_ious(ious))
            area.append(torch.from_numpy((truth[:, 2:] - truth[:, :2]).prod(1)))
    model.train()
    ious, areas = torch.cat(best), torch.cat(area)
    recall = (ious[:, None] >= IOU_THRESHOLDS).double().mean(1)
    parts = {
        "small": areas < 32**2,
        "medium": (areas >= 32**2) & (areas < 96**2),
        "large": areas >= 96**2,
    }
    return {
        "recall": round(recall.mean().item(), 4),
        "recall at IoU .5": round((ious >= 0.5).double().mean().item(), 4),
        **{name: round(recall[rows].mean().item(), 4) for name, rows in parts.items()},
    }


def greedy_ious(ious: Tensor) -> Tensor:
    """IoU of each object when object and box of highest IoU are paired off repeatedly: (G, P) -> (G,)."""
    ious, found = ious.clone(), torch.zeros(len(ious))
    for _ in range(min(ious.shape)):
        row, column = divmod(int(ious.argmax()), ious.shape[1])
        found[row] = ious[row, column]
        ious[row, :] = -1
        ious[:, column] = -1
    return found


def train(args: argparse.Namespace, model: nn.Module, processor: RTDetrImageProcessor) -> list[dict[str, Any]]:
    """Run or resume the training loop; returns the measured curve."""
    photos, boxes = read_split(args.data, "train", "train2017")
    calib = read_split(args.data, "calib", "train2017")
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 1e-4}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    curve: list[dict[str, Any]] = []
    start = 0
    if (state := load_checkpoint(args.work / "state.pt")) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start, curve = state["step"], state["curve"]
    progress = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="train detector")
    for step in progress:
        # Seeded by step, so that a resumed run draws the same batches.
        rng = np.random.default_rng([DOMAIN, args.seed, step])
        torch.manual_seed(int(rng.integers(2**31)))  # the noise of the denoising queries
        drawn = [draw_view(rng, photos[i], boxes[i]) for i in rng.choice(len(photos), args.batch, replace=False)]
        labels = [
            {"class_labels": torch.zeros(len(b), dtype=torch.int64), "boxes": torch.from_numpy(b)} for _, b in drawn
        ]
        loss = model(pixel_values=as_pixels([view for view, _ in drawn]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            curve.append({"step": step + 1, "loss": round(loss.item(), 3), **recall_at(model, processor, *calib)})
            progress.write(str(curve[-1]))
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            save_checkpoint(args.work / "state.pt", {**state, "step": step + 1, "curve": curve})
        progress.set_postfix(loss=f"{loss.item():.2f}")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="the demo world (default: data/demo)")
    parser.add_argument("--out", type=Path, default=HERE / "weights" / "detector", help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/demo_detector"), help="the state to resume from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--save-every", type=int, default=250, help="steps between measured, resumable states")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = build_model().to(memory_format=torch.channels_last).train()
    processor = RTDetrImageProcessor(
        size={"height": NETWORK_HW[0], "width": NETWORK_HW[1]}, do_resize=True, do_rescale=True, do_normalize=False
    )
    curve = train(args, model, processor)
    model.half().float()  # what is measured below is what is stored
    result = {"test photos": recall_at(model, processor, *read_split(args.data, "test", "val2017")), "curve": curve}
    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    processor.save_pretrained(args.out)
    write_json(args.out / "measured.json", result)
    print(result["test photos"])


if __name__ == "__main__":
    main()
