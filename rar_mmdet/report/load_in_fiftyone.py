"""Load runs into FiftyOne: photos, annotated objects, and each run's names before and after ranking.

    pip install fiftyone        # in any environment; this file needs nothing else
    python load_in_fiftyone.py [--name NAME] [--photos FOLDER] [--no-app]

`rar-mmdet report RUN ... --fiftyone` copies this file beside the figures of a page, with the runs in it. Each region is
a detection of three fields: `ground_truth`, `RUN_retrieval` and `RUN_named`, where its confidence is a score and
`change` is improved, harmed, right or wrong. In the app: filter by `change`, sort by confidence, or evaluate with
`dataset.evaluate_detections`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNS: dict[str, str] = {}  # name -> its records; filled in by `rar-mmdet report --fiftyone`
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def regions_by_photo(records: str | Path, photos: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Photo's file -> its regions; regions whose photo is not known are left out.

    Args:
        records: regions.jsonl of a run.
        photos: folder in which photos are looked for by their file name, where they do not lie as the records say.
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with open(records, encoding="utf-8") as lines:
        for line in lines:
            region = json.loads(line)
            if region.get("file"):
                file = Path(region["file"])
                found[str(Path(photos) / file.name if photos and not file.exists() else file)].append(region)
    return found


def upright_wh(photo: str) -> tuple[int, int]:
    """Width and height of a photo as people see it, which is what boxes of records belong to."""
    from PIL import Image

    with Image.open(photo) as image:
        sideways = image.getexif().get(0x0112) in SIDEWAYS
        return (image.height, image.width) if sideways else (image.width, image.height)


def labels_of(region: dict[str, Any], wh: tuple[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Field and contents of each detection of a region; boxes are x, y, width, height of 1, as FiftyOne has them."""
    (x1, y1, x2, y2), (width, height) = region["box_xyxy"], wh
    box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    truth, names = region.get("truth_name"), region["names"]
    common = {"bounding_box": box, "region": region["region"]}
    if truth is not None:
        yield "ground_truth", {**common, "label": truth}
    if not names:
        return
    best = max(range(len(names)), key=region["fused"].__getitem__)
    ids = region["category_ids"]
    change = None
    if truth is not None:
        before, after = ids[0] == region["truth"], ids[best] == region["truth"]
        change = {(0, 0): "wrong", (0, 1): "improved", (1, 0): "harmed", (1, 1): "right"}[before, after]
    more = {"status": region["status"], "change": change, "truth": truth}
    yield "retrieval", {**common, "label": names[0], "confidence": region["probs"][0], **more}
    yield "named", {**common, "label": names[best], "confidence": region["fused"][best], **more}


def load(name: str, runs: dict[str, str], photos: str | None = None) -> Any:
    """A FiftyOne dataset of the runs, kept under `name`; one of that name is replaced."""
    import fiftyone as fo

    if fo.dataset_exists(name):
        fo.delete_dataset(name)
    dataset = fo.Dataset(name, persistent=True)
    samples: dict[str, Any] = {}
    for run, records in runs.items():
        prefix = re.sub(r"\W", "_", run).strip("_") + "_"  # a field may not begin with one
        for photo, regions in regions_by_photo(records, photos).items():
            if not Path(photo).is_file():
                continue
            is_new = photo not in samples
            sample = samples.setdefault(photo, fo.Sample(photo))
            fields: dict[str, list[Any]] = defaultdict(list)
            wh = upright_wh(photo)
            for region in regions:
                for field, content in labels_of(region, wh):
                    if field == "ground_truth" and not is_new:
                        continue
                    fields[field if field == "ground_truth" else prefix + field].append(fo.Detection(**content))
            for field, detections in fields.items():
                sample[field] = fo.Detections(detections=detections)
    dataset.add_samples(list(samples.values()))
    return dataset


def main() -> None:
    """Load, and open the app."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="rar_mmdet", help="of the dataset; replaced if it is there")
    parser.add_argument("--photos", metavar="FOLDER", help="where photos are now, if not where they were")
    parser.add_argument("--no-app", action="store_true", help="load only")
    args = parser.parse_args()
    dataset = load(args.name, RUNS, args.photos)
    if not len(dataset):
        parser.error("no photo of the records was found; --photos FOLDER says where they are")
    if not args.no_app:
        import fiftyone as fo

        fo.launch_app(dataset).wait()


if __name__ == "__main__":
    main()
