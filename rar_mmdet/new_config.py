"""Configs for a user's own annotated photos: retrieval alone, and RAR on top of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rar_mmdet.errors import AnnotationFileError, ConfigError
from rar_mmdet.files.coco import photo_path
from rar_mmdet.files.shipped import shipped
from rar_mmdet.files.vocabulary import label_order
from rar_mmdet.files.yolo import read_yolo
from rar_mmdet.scoring.annotations import load_annotation_file

__all__ = ["Project", "main", "write_configs"]

DEMO = shipped("demo")
ENCODERS = {
    "clip-vit-b16": 'dict(type="OpenClipEncoder", model="ViT-B-16", pretrained="openai")',
    "clip-vit-l14-336": 'dict(type="OpenClipEncoder", model="ViT-L-14-336", pretrained="openai")',
    "siglip2-b16": 'dict(type="OpenClipEncoder", model="ViT-B-16-SigLIP2", pretrained="webli")',
}
RANKERS = {
    "qwen": 'dict(type="TransformersRanker", model="Qwen/Qwen2.5-VL-7B-Instruct", image_size=336, batch_size=32)',
    "llava": 'dict(type="TransformersRanker", model="llava-hf/llava-1.5-7b-hf")',
    "server": 'dict(type="OpenAIRanker", base_url="http://127.0.0.1:8000/v1", model="Qwen/Qwen2.5-VL-7B-Instruct")',
}

RETRIEVAL = """\
# {title}: retrieval only, annotated boxes. Written by `rar-mmdet new-config`; yours to change.
ann_file = {ann_file!r}
photos = {photos!r}

default_scope = "mmdet"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    visualization=dict(type="DetVisualizationHook"),
)
custom_hooks = [dict(type="rar_mmdet.RecognitionHook")]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(
    type="rar_mmdet.RecognitionVisualizer", name="visualizer", vis_backends=[dict(type="LocalVisBackend")]
)
log_level = "INFO"

# Boxes come from the annotations; to use a detector's instead see docs/detectors.md.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="rar_mmdet.KeepOriginalImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="rar_mmdet.ProposalsFromAnnotations"),
    dict(type="rar_mmdet.PackRecognitionInputs"),
]
test_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="rar_mmdet.{dataset}",
        data_root="",
        ann_file=ann_file,
        data_prefix=dict(img=photos),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_cfg = dict(type="TestLoop")
test_evaluator = [
    dict(type="rar_mmdet.{metric}", ann_file=ann_file, metric="bbox", digits=None),
    dict(type="rar_mmdet.RecognitionMetric", ann_file=ann_file),
]

model = dict(
    type="rar_mmdet.ProposalRecognizer",
    recognizer=dict(
        vocabulary=ann_file,  # or a file with one name on each line, in the order of the labels
        cropper=dict(scale=dict(type="AreaScale"), background=dict(type="BlurBackground")),
        encoder={encoder},
        memory=dict(type="TextMemory", templates="single"),
    ),
)
"""
RAR = """\
# {title}: RAR, the five best names of retrieval ranked by a multimodal LLM. Written by `rar-mmdet new-config`.
_base_ = "retrieval.py"

model = dict(
    recognizer=dict(
        ranker={ranker},
        # Fit these on photos of their own with `rar-mmdet calibrate ranker`; they are the package's defaults.
        fusion=dict(type="LogLikFusion", alpha=0.3, temperature=1.0),
    )
)
"""


@dataclass(frozen=True)
class Project:
    """What a data set is, as configs need it."""

    annotations: Path  # COCO or LVIS file
    photos: Path
    is_lvis: bool

    @staticmethod
    def of(data: Path, photos: Path | None, out: Path, split: str) -> Project:
        """Look at an annotation file, or at a YOLO folder, whose boxes are written to `out` as a COCO file.

        Raises:
            AnnotationFileError: it is neither; or photos named in it are missing.
        """
        if data.is_dir():
            content = read_yolo(data, split, progress=lambda photos: tqdm(list(photos), desc="photos", disable=None))
            file = out / f"annotations_{split}.json"
            file.write_text(json.dumps(content) + "\n", encoding="utf-8")
            return Project(file.resolve(), (photos or data).resolve(), is_lvis=False)
        content = load_annotation_file(data)
        for key in ("images", "categories"):
            if not content.get(key):
                raise AnnotationFileError(f"{data} has no {key}; expected an annotation file in COCO or LVIS style")
        label_order(content["categories"], where=str(data))
        if photos is None:
            raise ConfigError(f"give the folder that the file names of {data} start from: --images FOLDER")
        project = Project(data.resolve(), photos.resolve(), is_lvis="neg_category_ids" in content["images"][0])
        project.check_photos(content["images"])
        return project

    def check_photos(self, images: Sequence[dict[str, Any]]) -> None:
        """Refuse a folder that does not hold the first and the last photo."""
        for image in (images[0], images[-1]):
            photo = photo_path(image, self.photos)
            if not photo.is_file():
                raise AnnotationFileError(
                    f"{photo} does not exist, but {self.annotations.name} names it; "
                    "give the folder that its file names start from as --images"
                )


def write_configs(project: Project, out: Path, encoder: str, ranker: str) -> list[Path]:
    """Write `retrieval.py` and `rar.py` into `out`; the files.

    Args:
        project: the data.
        out: an existing folder; files of these names there are not overwritten.
        encoder: a key of `ENCODERS`, 'demo', or the name of an open_clip model or folder ('local-dir:FOLDER').
        ranker: a key of `RANKERS`, or 'demo'.

    Raises:
        ConfigError: a file is there already, or encoder or ranker are not known.
    """
    files = [out / "retrieval.py", out / "rar.py"]
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} is there already; give another --out, or remove it")
    kind = "LVIS" if project.is_lvis else "Coco"
    files[0].write_text(
        RETRIEVAL.format(
            title=project.annotations.stem,
            ann_file=project.annotations.as_posix(),
            photos=f"{project.photos.as_posix()}/",
            dataset=f"{kind}VocabularyDataset",
            metric=f"Sparse{kind}Metric",
            encoder=_encoder(encoder),
        ),
        encoding="utf-8",
    )
    files[1].write_text(RAR.format(title=project.annotations.stem, ranker=_ranker(ranker)), encoding="utf-8")
    return files


def _encoder(name: str) -> str:
    if name == "demo":
        return f'dict(type="OpenClipEncoder", model="local-dir:{(DEMO / "weights" / "clip").as_posix()}")'
    return ENCODERS.get(name, f'dict(type="OpenClipEncoder", model={name!r})')


def _ranker(name: str) -> str:
    if name == "demo":
        return (
            f'dict(type="TransformersRanker", model="{(DEMO / "weights" / "ranker").as_posix()}", '
            f'ask=dict(type="Likelihood", prompts="{(DEMO / "prompts.json").as_posix()}"), '
            f'loading=dict(modules=["{(DEMO / "tiny_vision.py").as_posix()}"]))'
        )
    if name not in RANKERS:
        raise ConfigError(f"--ranker {name!r} is not known; known are {', '.join((*RANKERS, 'demo'))}")
    return RANKERS[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the data, write the configs, say what to type next."""
    parser = argparse.ArgumentParser(
        prog="rar-mmdet new-config",
        description="Write configs for your own annotated photos: retrieval.py and, on top of it, rar.py.",
        epilog="Example: rar-mmdet new-config demo/photos/boxes.json --images demo/photos --out work_dirs/mine",
    )
    parser.add_argument(
        "data", type=Path, help="annotation file in COCO or LVIS style, or the folder of a YOLO data set"
    )
    parser.add_argument("--images", type=Path, help="folder that the file names of the annotation file start from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--split", default="val", help="split of a YOLO data set (default: val)")
    parser.add_argument(
        "--encoder",
        default="clip-vit-b16",
        help=f"{', '.join(ENCODERS)}, demo (toy shapes only), or any model of open_clip (default: clip-vit-b16)",
    )
    parser.add_argument("--ranker", default="qwen", help=f"{', '.join(RANKERS)}, demo (default: qwen)")
    args = parser.parse_args(argv)
    if not args.data.exists():
        raise ConfigError(f"{args.data} does not exist (looked for in {Path.cwd()})")
    args.out.mkdir(parents=True, exist_ok=True)
    project = Project.of(args.data, args.images, args.out, args.split)
    files = write_configs(project, args.out, args.encoder, args.ranker)
    print(f"written: {', '.join(map(str, files))}\nnext:")
    print(f"  python tools/test.py {files[0]} --check   # what is missing, and how long it will take")
    print(f"  python tools/test.py {files[0]}           # retrieval only: what ranking has to beat")
    print(f"  python tools/test.py {files[1]}")
    return 0
