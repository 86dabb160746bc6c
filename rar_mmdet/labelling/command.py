"""Label a folder of photos with your own words, and get a page to review the labels.

    rar-mmdet label photos/ --words words.txt --embedded --out labels/        # a first try, nothing to fetch
    rar-mmdet label photos/ --words words.txt --quality good          # says what it takes and what to fetch
    rar-mmdet label photos/ --words words.txt --quality good --apply corrections.json
    rar-mmdet label more/ --words words.txt --quality good --learned labels/ --precision 0.95 --out more_labels/

Words: one a line. `cat | kitten` are two phrases for one class, `dog > poodle` (or an indent) a taxonomy whose upper
word is written where the lower one is unsure, `gasket A17 @ photos/a17` has exemplar photos, `! shadow` competes and is
never written, `#` begins a remark; YAML and CSV of the same (docs/labelling.md).

OUT gets the labels in each format, unsure.json (regions without a label and their best classes) and review.html: open
it in a browser, choose with the keys, save corrections.json, and give it to --apply: labels are corrected, the boxes
become exemplars, and scores become the probability that a label is right; --learned OUT takes both to other photos.
--apply also takes a file of annotated boxes (COCO, YOLO, VOC, CVAT, Label Studio) of the photos. A run that was
stopped, or killed, goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rar_mmdet.components import read_config, recognizer_of
from rar_mmdet.detectors import AnnotationDetector, Detector, TransformersDetector, read_box_file
from rar_mmdet.errors import ConfigError, MissingAssetError, RarError, RecordFileError
from rar_mmdet.files.names import shown
from rar_mmdet.files.shipped import shipped
from rar_mmdet.labelling.corrections import corrections_of_boxes, is_corrections, read_corrections
from rar_mmdet.labelling.labeller import Labeller, LabelRun, WholePhoto
from rar_mmdet.labelling.photos import told
from rar_mmdet.labelling.review import write_review
from rar_mmdet.labelling.words import WordList, read_words
from rar_mmdet.labelling.writers import FORMATS

__all__ = ["add_model_options", "build_labeller", "main"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
QUALITIES = ("fast", "good", "best")
UNSURE = "unsure.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos, also in folders below it")
    parser.add_argument("--words", type=Path, required=True, help="the words: .txt, .yaml or .csv")
    parser.add_argument("--out", type=Path, default=Path("labels"), help="folder of the labels (default: labels)")
    add_model_options(parser)
    parser.add_argument(
        "--formats", nargs="+", default=["coco"], metavar="FORMAT", help=f"of {', '.join(FORMATS)} (default: coco)"
    )
    parser.add_argument(
        "--precision",
        type=float,
        metavar="SHARE",
        help="in place of --min-score: as many labels as are right that often, such as 0.95; by what --apply or "
        "--learned know",
    )
    parser.add_argument("--keep-unsure", type=Path, metavar="FILE", help="of regions without a label (OUT/unsure.json)")
    parser.add_argument("--review", type=int, default=5000, help="regions on the page, doubtful first (default: 5000)")
    parser.add_argument(
        "--apply", type=Path, metavar="FILE", help="corrections.json of the review page, or annotated boxes of any tool"
    )
    parser.add_argument(
        "--learned", type=Path, metavar="OUT", help="folder of labels that were corrected: use what was learned there"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds other labels")
    return parser.parse_args(argv)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where boxes and names come from, for `build_labeller`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--detector", metavar="MODEL", help="folder or hub id of a detector of transformers finds boxes")
    where.add_argument(
        "--boxes", type=Path, metavar="FILE", help="boxes of COCO, YOLO, VOC, CVAT or Label Studio files"
    )
    where.add_argument("--whole", action="store_true", help="each photo is one box")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--quality",
        choices=QUALITIES,
        help="published models for detector, encoder and ranker: fast runs on a CPU, good and best want a GPU",
    )
    which.add_argument("--config", type=Path, help="config with a recogniser, such as configs/rar_lvis_qwen.py")
    which.add_argument("--embedded", action="store_true", help="the demo's models: toy shapes alone, nothing to fetch")
    parser.add_argument("--prompt", help="what a detector by text looks for, such as 'object . animal . thing'")
    parser.add_argument(
        "--min-box-score",
        type=float,
        default=0.3,
        help="boxes the detector is less sure of are left out (default: 0.3)",
    )
    parser.add_argument("--min-score", type=float, default=0.5, help="labels below are not written (default: 0.5)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")


def build_labeller(args: argparse.Namespace, words: WordList) -> tuple[Labeller, dict[str, str]]:
    """The labeller that `add_model_options` describe, nothing loaded yet; and what tells it from others.

    Says what a quality takes.

    Raises:
        RarError: something is missing or wrong.
    """
    own = f"labelling/{args.quality}.py" if args.quality else "demo/rar_demo.py" if args.embedded else None
    config = args.config if own is None else shipped("configs") / own
    if not config.is_file():
        raise MissingAssetError(f"--config {config}: there is no such file")
    content = read_config(config)
    for part, size in (content.get("parts") or {}).items():
        print(f"{part:<10} {size}")
    recognizer = recognizer_of(config, list(words.phrases))
    missing = recognizer.encoder.missing_assets()
    missing += [] if recognizer.ranker is None else recognizer.ranker.missing_assets()
    try:
        detector, source = _boxes(args, content.get("detector"))
    except RarError as error:
        if not missing:
            raise
        raise MissingAssetError(_all_of([str(error), *missing])) from error
    if isinstance(detector, TransformersDetector):
        missing = detector.missing_assets() + missing
    if missing:
        raise MissingAssetError(_all_of(missing))
    if args.device:
        recognizer.to(args.device)
    return Labeller(recognizer, words, detector, args.min_score), {"config": str(config.resolve()), "boxes": source}


def _all_of(missing: Sequence[str]) -> str:
    """One message for everything that is missing, so that nobody meets one after the other."""
    return "see to what is not there, then give the command again:\n  " + "\n  ".join(missing)


def run(args: argparse.Namespace) -> None:
    """Recognise, write, draw the page, say where things are.

    Raises:
        RarError: something is missing or wrong.
    """
    words = read_words(args.words)
    for name in args.formats:
        if name not in FORMATS:
            raise ConfigError(f"there is no format {name!r}; known are {', '.join(FORMATS)}")
    labeller, settings = build_labeller(args, words)
    labels = LabelRun(
        labeller,
        args.photos,
        args.out,
        settings,
        overwrite=args.overwrite,
        learned=args.learned,
        precision=args.precision,
    )
    print(f"words      {words.describe()}", flush=True)
    corrections = read_corrections(args.apply, words) if args.apply and is_corrections(args.apply) else None
    if corrections is not None:  # first: photos that are not done yet are named with what was learned
        print(f"learned    {labels.correct(corrections).describe()}", flush=True)
    counts = labels.run()
    if args.apply is not None and corrections is None:
        truth = read_box_file(args.apply)
        found, unknown = corrections_of_boxes(truth, words, labels.regions())
        if unknown:
            print(f"{len(unknown)} names of {args.apply} are not among the words: {shown(unknown)}")
        print(f"learned    {labels.correct(found).describe()}", flush=True)
    elif corrections is None and labels.labeller.learned is not None:
        print(f"learned    {labels.labeller.learned.describe()}", flush=True)
    places, written = labels.write(args.formats)
    unsure = args.keep_unsure or args.out / UNSURE
    part = unsure.with_name(f"{unsure.name}.part")
    try:
        _write_unsure(labels, part)
        os.replace(part, unsure)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    page = args.out / "review.html"
    reviewed = write_review(labels, page, args.review)
    _tell(labels, counts, written)
    for place, name in zip(places, dict.fromkeys(args.formats), strict=True):
        print(f"{name:<10} {place}")
    print(f"unsure     {unsure}\nreview     {page}  ({reviewed} regions, doubtful first; opens in any browser)")


def _boxes(args: argparse.Namespace, preset: dict[str, Any] | None) -> tuple[Detector, str]:
    """Where boxes come from, and what tells it from other sources; a preset's detector unless another is asked for."""
    if args.whole:
        return WholePhoto(), "whole photos"
    if args.boxes is not None:
        return AnnotationDetector(args.boxes, missing="empty"), str(args.boxes.resolve())
    model, prompt = args.detector, args.prompt
    if model is None and args.embedded:
        model = str(shipped("demo") / "weights" / "detector")
    elif model is None and preset is not None:
        model, prompt = preset["model"], prompt or preset.get("prompt")
    if model is None:
        raise ConfigError("say where boxes come from: --detector MODEL, --boxes FILE, or --whole for whole photos")
    detector = TransformersDetector(model=model, prompt=prompt, score_threshold=args.min_box_score, device=args.device)
    return detector, f"{detector.checkpoint.name} {prompt or ''} {args.min_box_score}"


def _write_unsure(labels: LabelRun, file: Path) -> None:
    """Regions without a label, with their best classes: one list, a region a line."""
    corrected = labels.corrections()
    classes = labels.labeller.words.classes
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("[")
        comma = "\n"
        for state, decided in labels.decided():
            for record, decision in decided:
                if decision.class_id is None and (state.name, record.region) not in corrected:
                    best = [[classes[row], round(score, 4)] for row, score in decision.best[:5]]
                    entry = {"photo": state.name, "region": record.region, "box_xyxy": record.box_xyxy, "best": best}
                    stream.write(comma + json.dumps(entry, ensure_ascii=False))
                    comma = ",\n"
        stream.write("\n]\n")


def _tell(labels: LabelRun, counts: Counter[str], written: Counter[str]) -> None:
    before = f", {counts['done_before']} of them done before" if counts["done_before"] else ""
    print(f"\n{counts['photos']} photos{before}; {written['labels']} labels, {written['unsure']} boxes without one")
    if labels.precision is not None:
        print(f"a score of {labels.min_score:.3f} or more, so that {labels.precision:.0%} of the labels are right")
    if written["corrected"]:
        print(f"{written['corrected']} corrected by hand")
    unreadable = [state for state in labels.done if state.error]
    if unreadable:
        print(f"{len(unreadable)} photos left out; the first: {unreadable[0].error}")
    if labels.passed_over:
        print(f"passed over: {told(labels.passed_over)}")
    detector = labels.labeller.detector
    if isinstance(detector, AnnotationDetector):
        without = [name for name in labels.names if detector.file.row_of(name) is None]
        if without:
            print(f"{len(without)} photos have no entry in the file of boxes, such as {without[0]}")
    print()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = parse_args(argv)
    try:
        run(args)
    except RarError:  # some are errors of files too
        raise
    except OSError as error:  # a full disk, a folder that may not be written
        raise RecordFileError(
            f"{error.filename or args.out}: {error.strerror}; nothing is half-written. "
            f"{'Make room' if error.errno in NO_ROOM else 'See to that'}, then give the same command again: it goes on "
            "where it was"
        ) from error
    return 0
