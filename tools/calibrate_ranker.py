"""Fit a ranker's temperature, its weight in the fusion, and when not to ask, on annotated training images.

    python tools/calibrate_ranker.py configs/demo/rar_demo_likelihood.py \
        --annotations data/demo/annotations/lvis_demo_calib.json --images data/demo --out work_dirs/calibration

Writes calibration.json and ap_over_weight.png. Temperature and weight maximise the likelihood of the truth among the
candidates; AP as a function of the weight is shown beside it, not fitted. Never give it the images you will report on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.config import Config, DictAction
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.components import asks_a_model, build_recognizer
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import MissingAssetError, RarError
from rar_mmdet.fusion import LogLikFusion
from rar_mmdet.rankers import AskingRanker
from rar_mmdet.rankers.calibration import (
    decisive_margin,
    fit_temperature,
    fit_weight,
    fused_log_probs,
    negative_log_likelihood,
)
from rar_mmdet.scoring import LVIS, Detections, GroundTruth, evaluate, load_annotation_file, lvis_summary
from rar_mmdet.structures import Ranking, Shortlist

WEIGHTS = [i / 10 for i in range(11)]


@dataclass(frozen=True)
class Regions:
    """All annotated regions of some images, with what retrieval and ranker say about them."""

    image_ids: np.ndarray  # (R,) as in the annotation file
    boxes_xyxy: Tensor  # (R, 4) float32, original pixels
    truth: Tensor  # (R,) int64 row of the vocabulary
    crops: Tensor  # (R, 3, S, S) uint8, what the ranker sees
    shortlist: Shortlist  # (R, N)

    def target(self, k: int) -> Tensor:
        """(R,) column of the truth among the K best, -1 where it is not."""
        hit = self.shortlist.category_ids[:, :k] == self.truth[:, None]
        return torch.where(hit.any(1), hit.float().argmax(1), -1)


def read_images(annotations: dict[str, Any], root: Path, limit: int | None) -> Iterator[tuple[int, np.ndarray, list]]:
    """(image id, RGB image, its annotations) for every image that has some."""
    by_image: dict[int, list] = {}
    for annotation in annotations["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in annotations["images"][:limit]:
        if image["id"] in by_image:
            name = image.get("file_name") or "/".join(urlsplit(image["coco_url"]).path.split("/")[-2:])
            if not (root / name).is_file():
                raise MissingAssetError(f"{root / name} does not exist; give the folder of the images as --images")
            with Image.open(root / name) as picture:
                yield image["id"], np.asarray(picture.convert("RGB")), by_image[image["id"]]


def collect(recognizer: Any, annotations: dict[str, Any], root: Path, limit: int | None = None) -> Regions:
    """Crop, encode and retrieve every annotated box."""
    label = {c["id"]: row for row, c in enumerate(sorted(annotations["categories"], key=lambda c: c["id"]))}
    recognizer.to("cuda" if torch.cuda.is_available() else "cpu")
    recognizer.encoder.load(recognizer.device)
    image_ids, boxes, truth, crops, ids, probs = [], [], [], [], [], []
    images = read_images(annotations, root, limit)
    for image_id, image, found in tqdm(images, desc="retrieve", unit="image", disable=None):
        xywh = torch.tensor([a["bbox"] for a in found], dtype=torch.float32)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        queries = recognizer.encoder.encode_images(recognizer.cropper.crop(image, xyxy))
        shortlist = recognizer.memory.search(queries, recognizer.shortlist_depth)
        image_ids += [image_id] * len(found)
        boxes.append(xyxy)
        truth += [label[a["category_id"]] for a in found]
        crops.append(recognizer.ranker_cropper.crop(image, xyxy).cpu())
        ids.append(shortlist.category_ids.cpu())
        probs.append(shortlist.probs.cpu())
    if not truth:
        raise RarError(f"no annotated box in the {len(annotations['images'][:limit])} images asked for; nothing to fit")
    shortlist = Shortlist(torch.cat(ids), torch.cat(probs))
    return Regions(np.array(image_ids), torch.cat(boxes), torch.tensor(truth), torch.cat(crops), shortlist)


def rank(ranker: Any, regions: Regions, names: Sequence[str], k: int, chunk: int = 64) -> Ranking:
    """The ranker's opinion of every region, `chunk` at a time."""
    parts = [
        ranker.rank(regions.crops[s : s + chunk], regions.shortlist[s : s + chunk].head(k), names)
        for s in tqdm(range(0, len(regions.truth), chunk), desc="rank", unit=f"x {chunk} regions", disable=None)
    ]
    log_probs = [p.log_probs if p.log_probs is not None else torch.zeros(p.order.shape) for p in parts]
    has_log_probs = any(p.log_probs is not None for p in parts)
    return Ranking(
        torch.cat([p.order for p in parts]),
        torch.cat(log_probs) if has_log_probs else None,
        torch.cat([p.status for p in parts]),
    )


def average_precision(regions: Regions, fused: Tensor, annotations: dict[str, Any], emission: Any) -> dict[str, float]:
    """LVIS AP of fused scores (R, N), over the images of `regions`."""
    category_ids = np.array(sorted(c["id"] for c in annotations["categories"]))
    rows: dict[str, list] = {"image": [], "category": [], "box": [], "score": []}
    for image_id in np.unique(regions.image_ids):
        mine = torch.from_numpy(np.flatnonzero(regions.image_ids == image_id))
        ids = regions.shortlist.category_ids[mine]
        boxes = regions.boxes_xyxy[mine]
        emitted = emission.select(fused[mine], ids, boxes, torch.ones(len(mine)))
        xyxy = boxes[emitted.region_ids].double()
        rows["image"].append(np.full(len(xyxy), image_id))
        rows["category"].append(category_ids[ids[emitted.region_ids, emitted.columns].numpy()])
        rows["box"].append(torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], dim=1).numpy())
        rows["score"].append(emitted.scores.double().numpy())
    detections = Detections(*(np.concatenate(rows[name]) for name in ("image", "category", "box", "score")))
    truth = GroundTruth.from_dataset(annotations, federated=True, image_ids=np.unique(regions.image_ids).tolist())
    return lvis_summary(evaluate(truth, detections, LVIS), truth)


def fit(regions: Regions, ranking: Ranking, k: int) -> dict[str, Any]:
    """Temperature, weight and margin, with the likelihoods before and after."""
    target = regions.target(k)
    usable = (target >= 0) & ranking.has_opinion
    if k < 2 or not usable.any():
        raise RarError(
            f"{int((target >= 0).sum())} of {len(target)} regions have their truth among the K={k} candidates and "
            f"{int(ranking.has_opinion.sum())} were scored by the ranker; a fit needs some with both, and K >= 2"
        )
    log_p, log_q = ranking.log_probs[usable], regions.shortlist.probs[usable, :k].log()
    wanted = target[usable]
    temperature = fit_temperature(log_p, wanted)
    weight = fit_weight(log_q, log_p / temperature, wanted)
    both = fused_log_probs(regions.shortlist.probs[:, :k].log(), ranking.log_probs.double() / temperature, weight)
    margin, saving = decisive_margin(regions.shortlist.probs[:, :k], both.argmax(1), target)
    return {
        "regions": len(target),
        "used": int(usable.sum()),
        "temperature": temperature,
        "alpha": weight,
        "decisive_margin": margin if saving else None,  # none is large enough
        "saving": saving,
        "nll_retrieval": negative_log_likelihood(log_q, wanted),
        "nll_ranker": negative_log_likelihood(log_p, wanted),
        "nll_ranker_tempered": negative_log_likelihood(log_p / temperature, wanted),
        "nll_fused": negative_log_likelihood(fused_log_probs(log_q, log_p / temperature, weight), wanted),
        "top1_retrieval": (target == 0).double().mean().item(),
        "top1_fused": (both.argmax(1) == target).double().mean().item(),
        "recall_at_k": (target >= 0).double().mean().item(),
    }


def plot(curves: dict[str, list[float]], weight: float, path: Path) -> None:
    """AP over the fusion weight, one line per subset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        axes.plot(WEIGHTS, [100 * v for v in values], marker="o", label=name)
    axes.axvline(weight, color="grey", linestyle="--", label=f"fitted by likelihood: {weight:.2f}")
    axes.set(xlabel="weight of the ranker (alpha of LogLikFusion)", ylabel="AP on the calibration images")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config with a ranker that gives log-probabilities")
    parser.add_argument("--annotations", type=Path, required=True, help="LVIS annotation file of training images")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder for calibration.json and the plot")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override config keys: key=value")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collect, fit, score, write; returns what calibration.json holds."""
    if not args.config.is_file():
        raise MissingAssetError(f"config {args.config} does not exist")
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    settings = config.model.recognizer
    settings["vocabulary"] = str(args.annotations)
    if asks_a_model(settings.get("ranker")):
        # What is to be found must not decide what is asked.
        settings["ranker"]["limits"] = {**settings["ranker"].get("limits", {}), "decisive_margin": None}
        settings["ranker"].setdefault("cache", str(args.out / "answers.sqlite"))  # a stopped run goes on
    recognizer = build_recognizer(settings, default_emission=TopPairs())
    ranker = recognizer.ranker
    if not isinstance(ranker, AskingRanker) or ranker.ask.wants == "text":
        raise RarError(
            f"{args.config} has no ranker that gives log-probabilities; ask='likelihood', 'letter' or 'yesno'"
        )
    missing = [*recognizer.encoder.missing_assets(), *recognizer.ranker.missing_assets()]
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    annotations = load_annotation_file(args.annotations)
    regions = collect(recognizer, annotations, args.images, args.num_images)
    recognizer.ranker.load(recognizer.device)
    k = recognizer.num_candidates
    ranking = rank(recognizer.ranker, regions, recognizer.prompt_names, k)
    if ranking.log_probs is None:
        raise RarError("the ranker gave no log-probabilities; a server without them cannot be calibrated")
    result = fit(regions, ranking, k)
    curves: dict[str, list[float]] = {"AP": [], "APr": []}
    for weight in WEIGHTS:
        fused = LogLikFusion(alpha=weight, temperature=result["temperature"])(regions.shortlist, ranking)
        summary = average_precision(regions, fused, annotations, recognizer.emission)
        for name, values in curves.items():
            values.append(summary[name])
    result |= {"weights": WEIGHTS, **{f"{name}_over_weight": values for name, values in curves.items()}}
    result["ranker"] = recognizer.ranker.report()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "calibration.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(curves, result["alpha"], args.out / "ap_over_weight.png")
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        result = run(args)
    except RarError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{result['used']} of {result['regions']} regions have their truth among the candidates")
    print(f"fusion=dict(type='LogLikFusion', alpha={result['alpha']:.3f}, temperature={result['temperature']:.3f})")
    if result["decisive_margin"] is None:
        print("ranker: decisive_margin=None, no question can be spared")
    else:
        saving = 100 * result["saving"]
        print(f"ranker: decisive_margin={result['decisive_margin']:.4f} saves {saving:.1f} % of the questions")
    for name in ("nll_retrieval", "nll_ranker", "nll_ranker_tempered", "nll_fused", "top1_retrieval", "top1_fused"):
        print(f"  {name:20s} {result[name]:.4f}")
    for weight, ap in zip(WEIGHTS, result["AP_over_weight"], strict=True):
        print(f"  alpha {weight:.1f}  AP {100 * ap:.2f}")
    print(f"written to {args.out}: calibration.json, ap_over_weight.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
