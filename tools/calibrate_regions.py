"""Find the crop scale and the blur of a retriever on training images (paper section C.3, Table 11, Figure 11).

    python tools/calibrate_regions.py configs/demo/clip_demo.py [--out work_dirs/regions/clip_demo]

Retrieval only: every annotated box is cropped at every scale with every blur, named, and scored by LVIS AP overall and
by object size. Prints Table 11's layout; writes table.json, crop_scale.png and .svg (Figure 11), and best_policy.py, a
config on top of CONFIG with the best policy: another sigma and other factors, with CONFIG's feather and area bounds.
Embeddings are kept in OUT/embeddings: a run that was stopped goes on, and a scale by area costs no encoding, as it
picks for every box one of the fixed scales. Never give it the images you will report on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.config import Config, DictAction
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.components import build_recognizer
from rar_mmdet.emission import TopPairs
from rar_mmdet.errors import ConfigError, MissingAssetError, RarError
from rar_mmdet.regions import AreaScale, BlurBackground, FixedScale, NoBackground, find_invalid_boxes, read_image
from rar_mmdet.regions.scale import COCO_AREA_BOUNDS, box_areas
from rar_mmdet.scoring import LVIS, Detections, GroundTruth, evaluate, load_annotation_file, lvis_summary

SCALES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8)  # paper Table 11
COLUMNS = ("AP", "APs", "APm", "APl")
SIZES = ("small", "medium", "large")
# Raise it when `RegionCropper` gives other pixels for the same settings, so that embeddings kept before are not used.
CROPS_VERSION = 2


@dataclass(frozen=True)
class Regions:
    """All usable annotated boxes of some images."""

    files: list[Path]  # one per image
    image_ids: NDArray[np.int64]  # one per image
    image_of: NDArray[np.int64]  # (R,) row of `files`; rises
    boxes_xyxy: NDArray[np.float64]  # (R, 4) original pixels


def find_regions(annotations: dict[str, Any], root: Path, limit: int | None) -> Regions:
    """The annotated boxes, without those that cannot be cropped."""
    boxes_of: dict[int, list] = {image["id"]: [] for image in annotations["images"][:limit]}
    for annotation in annotations["annotations"]:
        if annotation["image_id"] in boxes_of:
            boxes_of[annotation["image_id"]].append(annotation["bbox"])
    files, image_ids, image_of, boxes, skipped = [], [], [], [], 0
    for image in annotations["images"][:limit]:
        xywh = np.array(boxes_of[image["id"]], dtype=np.float64).reshape(-1, 4)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        bad = find_invalid_boxes(xyxy, (image["height"], image["width"]))
        xyxy, skipped = np.delete(xyxy, list(bad), axis=0), skipped + len(bad)
        if len(xyxy):
            image_of += [len(files)] * len(xyxy)
            files.append(root / (image.get("file_name") or "/".join(urlsplit(image["coco_url"]).path.split("/")[-2:])))
            image_ids.append(image["id"])
            boxes.append(xyxy)
    if not files:
        raise MissingAssetError("the annotation file has no usable boxes; give one of training images as --annotations")
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise MissingAssetError(f"{missing} does not exist; give the folder of the images as --images")
    if skipped:
        print(f"{skipped} boxes are empty or outside their image; left out")
    return Regions(files, np.array(image_ids), np.array(image_of), np.concatenate(boxes))


class Embedder:
    """Embeddings of all regions under a crop policy; kept on disk.

    Args:
        recognizer: whose cropper (size, window, fill, feather of the blur) and encoder are used.
        regions: what to crop.
        folder: where the files go. Their names depend on the settings, the boxes, the size and the time of change of
            every photo, and `CROPS_VERSION`.
    """

    def __init__(self, recognizer: Any, regions: Regions, folder: Path) -> None:
        self.cropper, self.encoder, self.regions, self.folder = recognizer.cropper, recognizer.encoder, regions, folder
        self.feather = self.cropper.background.feather
        settings = repr(self._cropper(scale=1.0, sigma=0.0))
        digest = hashlib.sha256(f"{CROPS_VERSION} {settings} {self.encoder.fingerprint}".encode())
        for file in regions.files:
            stat = file.stat()
            digest.update(f"\n{file} {stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(regions.image_of.tobytes() + regions.boxes_xyxy.tobytes())
        self.key = digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)

    def _cropper(self, scale: float, sigma: float) -> Any:
        return replace(self.cropper, scale=FixedScale(scale), background=BlurBackground(sigma, self.feather))

    def __call__(self, scale: float, sigma: float) -> Tensor:
        """(R, D) unit vectors for a fixed scale and blur."""
        path = self.folder / f"{self.key}_scale{scale:g}_sigma{sigma:g}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        cropper = self._cropper(scale, sigma)
        vectors, waiting = [], []
        for crops in self._crops(cropper, f"scale {scale:g}, blur {sigma:g}"):
            waiting.append(crops)
            if sum(map(len, waiting)) >= self.encoder.batch_size:
                vectors.append(self.encoder.encode_images(torch.cat(waiting)).cpu())
                waiting = []
        if waiting:
            vectors.append(self.encoder.encode_images(torch.cat(waiting)).cpu())
        embeddings = torch.cat(vectors)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            np.save(file, embeddings.numpy())
        unfinished.replace(path)
        return embeddings

    def _crops(self, cropper: Any, label: str) -> Iterator[Tensor]:
        starts = np.searchsorted(self.regions.image_of, np.arange(len(self.regions.files) + 1))
        for row, file in enumerate(tqdm(self.regions.files, desc=label, leave=False)):
            yield cropper.crop(read_image(file), self.regions.boxes_xyxy[starts[row] : starts[row + 1]])


class Scorer:
    """LVIS AP of embeddings: search, emit, evaluate, with every box given at score 1."""

    def __init__(self, recognizer: Any, regions: Regions, annotations: dict[str, Any]) -> None:
        self.recognizer, self.regions = recognizer, regions
        self.category_ids = np.array(sorted(c["id"] for c in annotations["categories"]))
        self.truth = GroundTruth.from_dataset(annotations, federated=True, image_ids=regions.image_ids.tolist())

    def __call__(self, embeddings: Tensor) -> dict[str, float]:
        shortlist = self.recognizer.memory.search(embeddings, self.recognizer.shortlist_depth)
        boxes = torch.from_numpy(self.regions.boxes_xyxy).float()
        parts: list[tuple] = []
        for row, image_id in enumerate(self.regions.image_ids):
            mine = torch.from_numpy(np.flatnonzero(self.regions.image_of == row))
            found = shortlist[mine]
            emitted = self.recognizer.emission.select(
                found.probs, found.category_ids, boxes[mine], torch.ones(len(mine))
            )
            xyxy = self.regions.boxes_xyxy[mine][emitted.region_ids.numpy()]
            xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
            labels = found.category_ids[emitted.region_ids, emitted.columns]
            category_ids = self.category_ids[labels.numpy()]
            parts.append((np.full(len(labels), image_id), category_ids, xywh, emitted.scores.double().numpy()))
        detections = Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        summary = lvis_summary(evaluate(self.truth, detections, LVIS), self.truth)
        return {name: 100 * summary[name] for name in COLUMNS}


def sweep(
    embed: Embedder, score: Scorer, scales: list[float], sigmas: list[float], bounds: tuple[float, float]
) -> list[dict[str, Any]]:
    """One row per blur and scale, then per blur the scale by area: the best found, and the paper's choice."""
    by_size = np.digitize(box_areas(embed.regions.boxes_xyxy), bounds)
    rows: list[dict[str, Any]] = []
    for sigma in sigmas:
        vectors = {scale: embed(scale, sigma) for scale in scales}
        fixed = [{"sigma": sigma, "scale": scale, **score(vectors[scale])} for scale in scales]
        best = max(fixed, key=lambda row: row["AP"])
        found = {(best["scale"],) * 3: best}

        def by_area(choice: tuple[float, ...], found: dict = found, vectors: dict = vectors) -> float:
            if choice not in found:
                picked = torch.stack([vectors[scale] for scale in choice])[by_size, torch.arange(len(by_size))]
                found[choice] = score(picked)
            return found[choice]["AP"]

        choices = [improve((best["scale"],) * 3, scales, by_area)]
        paper = AreaScale().factors
        if set(paper) <= set(scales):
            by_area(paper)
            choices.append(paper)
        rows += fixed
        rows += [{**found[choice], "sigma": sigma, "scale": list(choice)} for choice in dict.fromkeys(choices)]
    return rows


def improve(
    choice: tuple[float, ...], scales: list[float], value: Callable[[tuple[float, ...]], float]
) -> tuple[float, ...]:
    """Change the scale of one size at a time as long as AP over all regions rises (coordinate ascent)."""
    while True:
        before = choice
        for size in range(len(choice)):
            options = [(*choice[:size], scale, *choice[size + 1 :]) for scale in scales]
            choice = max([choice, *options], key=value)
        if choice == before:
            return choice


def print_table(rows: list[dict[str, Any]]) -> None:
    """The layout of the paper's Table 11."""
    for sigma in dict.fromkeys(row["sigma"] for row in rows):
        mine = [row for row in rows if row["sigma"] == sigma]
        fixed = [row for row in mine if isinstance(row["scale"], float)]
        best = {name: max(row[name] for row in fixed) for name in COLUMNS}
        print(f"\n{f'blur, sigma {sigma:g} px' if sigma else 'no blur':24s}" + "".join(f"{n:>9s}" for n in COLUMNS))
        for row in mine:
            is_fixed = isinstance(row["scale"], float)
            label = f"{row['scale']:.1f}" if is_fixed else "by area " + "/".join(f"{s:g}" for s in row["scale"])
            marks = ("*" if is_fixed and row[name] == best[name] else " " for name in COLUMNS)
            print(f"  {label:22s}" + "".join(f"{row[n]:8.2f}{m}" for n, m in zip(COLUMNS, marks, strict=True)))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Figure 11: AP over crop scale, overall and by object size, one line per blur; dashed: the best scale by area."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    sigmas = list(dict.fromkeys(row["sigma"] for row in rows))
    for panel, name in zip(panels, COLUMNS, strict=True):
        for index, sigma in enumerate(sigmas):
            fixed = [row for row in rows if row["sigma"] == sigma and isinstance(row["scale"], float)]
            label = f"blur, σ = {sigma:g} px" if sigma else "no blur"
            panel.plot([r["scale"] for r in fixed], [r[name] for r in fixed], "o-", color=f"C{index}", label=label)
            by_area = [r[name] for r in rows if r["sigma"] == sigma and not isinstance(r["scale"], float)]
            if name == "AP" and by_area:
                panel.axhline(max(by_area), color=f"C{index}", linestyle="--", label=f"{label}, scale by area")
        panel.set(title=name, xlabel="window side / longer box side")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


def best_policy(
    rows: list[dict[str, Any]], feather: float, bounds: tuple[float, float]
) -> tuple[float, dict[str, Any]]:
    """The highest AP, and its scale and background as keys of a cropper."""
    row = max(rows, key=lambda row: row["AP"])
    if isinstance(row["scale"], float):
        scale = {"type": "FixedScale", "factor": row["scale"]}
    else:
        scale = {"type": "AreaScale", **dict(zip(SIZES, row["scale"], strict=True)), "bounds": bounds}
    background = {"type": "BlurBackground", "sigma": row["sigma"], "feather": feather}
    return row["AP"], {"scale": scale, "background": background}


def find_recognizer(config: Config, name: Path) -> tuple[list[str], dict[str, Any]]:
    """The keys that lead to the recognizer's settings, and the settings."""
    keys, model = ["model"], config.model
    while "recognizer" not in model:
        if "roi_head" not in model:
            raise MissingAssetError(f"{name} has no recognizer to calibrate")
        keys, model = [*keys, "roi_head"], model["roi_head"]
    return [*keys, "recognizer"], model["recognizer"]


def check_policies(cropper: Any, where: str) -> None:
    """Refuse policies that the sweep would replace by others."""
    for part, swept in (("scale", (FixedScale, AreaScale)), ("background", (NoBackground, BlurBackground))):
        given = type(getattr(cropper, part))
        if given not in swept:
            raise ConfigError(
                f"{where}.{part} is {given.__name__}, which cannot be swept; {' and '.join(c.__name__ for c in swept)} "
                f"can. To calibrate without it: --cfg-options {where}.{part}=None"
            )


def write_snippet(cropper: dict[str, Any], keys: list[str], comment: str, config: Path, out: Path) -> None:
    """A config that inherits CONFIG and sets the cropper."""
    content: dict[str, Any] = {**cropper, "_delete_": True}
    for key in reversed([*keys, "cropper"]):
        content = {key: content}
    base = Path(os.path.relpath(config, out)).as_posix()
    text = Config({"_base_": [base], **content}).pretty_text
    (out / "best_policy.py").write_text(f"# {comment}; by tools/calibrate_regions.py.\n{text}", encoding="utf-8")


def training_set(config: Config, args: argparse.Namespace) -> tuple[Path, Path]:
    """Annotation file and image folder: as given, else the config's own training set."""
    loader = config.get("train_dataloader") or config.test_dataloader
    dataset = loader.dataset
    while "ann_file" not in dataset:
        dataset = dataset["dataset"]
    root = Path(dataset.get("data_root") or "")
    annotations = args.annotations
    if annotations is None:
        annotations = root / dataset["ann_file"]
        if config.get("train_dataloader") is None:
            beside = [
                annotations.with_name(annotations.name.replace(old, new))
                for new in ("calib", "train")
                for old in ("test", "val")
                if old in annotations.name
            ]
            annotations = next((path for path in beside if path.is_file()), None)
    if annotations is None or not annotations.is_file():
        raise MissingAssetError(
            f"no training annotations found{f' at {annotations}' if annotations else ''}; name them: --annotations FILE"
        )
    return annotations, args.images or root / dataset.get("data_prefix", {}).get("img", "")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config with a recognizer; its ranker, if any, is not asked")
    parser.add_argument(
        "--annotations",
        type=Path,
        help="LVIS annotation file of training images; default: the config's "
        "train_dataloader, else the calib or train file beside the test annotations",
    )
    parser.add_argument("--images", type=Path, help="folder of the images; default: the config's")
    parser.add_argument("--out", type=Path, help="default: work_dirs/regions/<name of the config>")
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES), help="window side / longer box side")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.0, 10.0], help="blur, output pixels; 0 is none")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="override config keys: key=value")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Sweep, print, draw and write; returns the table's rows."""
    if not args.config.is_file():
        raise MissingAssetError(f"config {args.config} does not exist")
    config = Config.fromfile(args.config)
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    annotation_file, images = training_set(config, args)
    keys, settings = find_recognizer(config, args.config)
    overrides = {"vocabulary": str(annotation_file), "ranker": None, "ranker_cropper": None}
    recognizer = build_recognizer({**settings, **overrides}, default_emission=TopPairs())
    check_policies(recognizer.cropper, ".".join([*keys, "cropper"]))
    missing = recognizer.encoder.missing_assets()
    if missing:
        raise MissingAssetError("; ".join(map(str, missing)))
    recognizer.encoder.load("cuda" if torch.cuda.is_available() else "cpu")
    annotations = load_annotation_file(annotation_file)
    regions = find_regions(annotations, images, args.num_images)
    out = args.out or Path("work_dirs/regions") / args.config.stem
    print(f"{len(regions.boxes_xyxy)} boxes of {len(regions.files)} images in {annotation_file}; files go to {out}")
    embed = Embedder(recognizer, regions, out / "embeddings")
    score = Scorer(recognizer, regions, annotations)
    bounds = getattr(recognizer.cropper.scale, "bounds", COCO_AREA_BOUNDS)
    rows = sweep(embed, score, sorted(args.scales), sorted(args.sigmas), bounds)
    (out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "crop_scale")
    ap, policy = best_policy(rows, embed.feather, bounds)
    comment = f"The crop policy with the best AP ({ap:.2f}) on {annotation_file.name}"
    write_snippet({**settings["cropper"], **policy}, keys, comment, args.config, out)
    print_table(rows)
    print(f"\nBest AP {ap:.2f}:\n{Config(policy).pretty_text}", end="")
    print(f"Use it: {out / 'best_policy.py'}")
    return rows


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        run(args)
    except RarError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
