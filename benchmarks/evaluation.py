"""Time and memory of scoring, against lvis-api, pycocotools, faster-coco-eval and tidecv in the same run.

    python benchmarks/evaluation.py [--json FILE]           # LVIS, 1,000 images x 1,203 classes x 300 detections
    python benchmarks/evaluation.py --full [--json FILE]    # also LVIS and V3Det at full size; about 8 GB of disk

Detections are synthetic at real densities (LVIS val: 12.35 boxes and about 4 annotated classes per image; V3Det val:
7.39 boxes), 300 per image: jittered annotated boxes with several labels each, as multi-label emission writes them.
Each evaluator runs in a process of its own, from the two JSON files to its summary numbers. Extra memory is the peak
above what the process held after its imports. Seconds are wall-clock; user-CPU seconds stand beside them, because the
machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LVIS_CLASSES, V3DET_CLASSES, COCO_CLASSES = 1203, 13204, 80
DETECTIONS = 300
LVIS_IMAGES, LVIS_VAL_IMAGES, V3DET_VAL_IMAGES = 1000, 19809, 29821
V3DET_PROBE_IMAGES = (25, 50, 100)  # pycocotools is measured here and extrapolated


# ---------------------------------------------------------------------------------------------------- synthetic worlds


def write_world(folder: Path, num_images: int, num_classes: int, boxes_per_image: float, seed: int = 0) -> None:
    """Write annotations.json and results.json of a synthetic test set."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, num_classes + 1) ** 0.8  # long tail; the exponent is ours
    popularity /= popularity.sum()
    images, annotations = [], []
    with open(folder / "results.json", "w", encoding="utf-8") as file:
        file.write("[")
        for image in range(num_images):
            count = max(1, rng.poisson(boxes_per_image))
            classes = rng.choice(num_classes, size=1 + rng.poisson(3), p=popularity)
            labels = rng.choice(classes, size=count)
            boxes = _random_boxes(rng, count)
            # In this world a category id is its label + 1, as in LVIS.
            images.append(_image(image + 1, rng.choice(num_classes, size=8, p=popularity) + 1, labels[:1] + 1))
            annotations += _annotations(len(annotations), image + 1, boxes, labels)
            records = _detections(rng, image + 1, boxes, labels, popularity)
            file.write((", " if image else "") + json.dumps(records)[1:-1])
        file.write("]")
    categories = [
        {"id": k + 1, "name": f"class {k}", "frequency": "fcr"[min(2, k * 3 // num_classes)]}
        for k in range(num_classes)
    ]
    world = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(world), encoding="utf-8")


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    size = np.exp(rng.uniform(np.log(12), np.log(300), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum(640 - size, 1)
    return np.concatenate([corner, size], axis=1).round(2)


def _image(image_id: int, absent: np.ndarray, partly: np.ndarray) -> dict[str, Any]:
    lists = {"neg_category_ids": sorted(set(absent.tolist())), "not_exhaustive_category_ids": partly.tolist()}
    return {"id": image_id, "height": 640, "width": 640, "file_name": f"{image_id}.jpg", **lists}


def _annotations(first: int, image_id: int, boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": first + i + 1, "image_id": image_id, "category_id": int(label) + 1, "bbox": box, "iscrowd": 0,
         "area": box[2] * box[3]}
        for i, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True))
    ]  # fmt: skip


def _detections(
    rng: np.random.Generator, image_id: int, boxes: np.ndarray, labels: np.ndarray, popularity: np.ndarray
) -> list[dict[str, Any]]:
    source = np.sort(rng.integers(0, len(boxes), DETECTIONS))
    jitter = rng.normal(0, 0.08, (DETECTIONS, 4)) * boxes[source][:, [2, 3, 2, 3]]
    jittered = (boxes[source] + jitter).astype(np.float32).astype(np.float64)
    jittered[:, 2:] = np.maximum(jittered[:, 2:], 1)
    named = np.where(
        rng.random(DETECTIONS) < 0.15, labels[source], rng.choice(len(popularity), DETECTIONS, p=popularity)
    )
    scores = rng.random(DETECTIONS).astype(np.float32).astype(np.float64)
    return [
        {"image_id": image_id, "bbox": box, "score": score, "category_id": label + 1}
        for box, score, label in zip(jittered.tolist(), scores.tolist(), named.tolist(), strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------- evaluators


def run_ours(folder: Path, protocol_name: str) -> Callable[[], float]:
    from rar_mmdet.scoring.annotations import GroundTruth, load_annotation_file
    from rar_mmdet.scoring.protocols import PROTOCOLS, read_checked_results, score

    def run() -> float:
        protocol = PROTOCOLS[protocol_name]
        dataset = load_annotation_file(folder / "annotations.json")
        truth = GroundTruth.from_dataset(dataset, federated=protocol.federated)
        del dataset
        return score(truth, read_checked_results(folder / "results.json", protocol), protocol).numbers["bbox_AP"]

    return run


def run_lvis_api(folder: Path, protocol_name: str) -> Callable[[], float]:
    from rar_mmdet._lvis import patch_lvis

    patch_lvis()
    from lvis import LVIS, LVISEval, LVISResults

    def run() -> float:
        truth = LVIS(str(folder / "annotations.json"))
        evaluator = LVISEval(truth, LVISResults(truth, str(folder / "results.json")), "bbox")
        evaluator.run()
        return float(evaluator.results["AP"])

    return run


def run_pycocotools(folder: Path, protocol_name: str) -> Callable[[], float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def run() -> float:
        truth = COCO(str(folder / "annotations.json"))
        evaluator = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        if protocol_name == "v3det":
            evaluator.params.maxDets = [300]
        evaluator.evaluate()
        evaluator.accumulate()
        precision = evaluator.eval["precision"][:, :, :, 0, -1]
        return float(np.mean(precision[precision > -1]))

    return run


def run_faster_coco_eval(folder: Path, protocol_name: str) -> Callable[[], float]:
    from faster_coco_eval import COCO, COCOeval_faster

    def run() -> float:
        truth = COCO(str(folder / "annotations.json"))
        evaluator = COCOeval_faster(
            truth, truth.loadRes(str(folder / "results.json")), "bbox", lvis_style=protocol_name == "lvis"
        )
        if protocol_name == "lvis":
            evaluator.params.maxDets = [300]
        evaluator.evaluate()
        evaluator.accumulate()
        precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
        return float(np.mean(precision[precision > -1]))

    return run


def run_errors(folder: Path, protocol_name: str) -> Callable[[], float]:
    def run() -> float:
        return run_errors_in_memory(folder, protocol_name)()

    return run


def run_errors_in_memory(folder: Path, protocol_name: str) -> Callable[[], float]:
    from rar_mmdet.scoring.annotations import GroundTruth, load_annotation_file
    from rar_mmdet.scoring.errors import find_errors
    from rar_mmdet.scoring.protocols import PROTOCOLS, read_checked_results

    protocol = PROTOCOLS[protocol_name]
    dataset = load_annotation_file(folder / "annotations.json")
    truth = GroundTruth.from_dataset(dataset, federated=protocol.federated)
    del dataset
    detections = read_checked_results(folder / "results.json", protocol)
    return lambda: sum(find_errors(truth, detections, protocol).gains.values())


def run_tidecv_in_memory(folder: Path, protocol_name: str) -> Callable[[], float]:
    for unused in ("tidecv.plotting", "tidecv.datasets"):  # figures and downloads need packages that nothing here does
        sys.modules.setdefault(unused, types.ModuleType(unused)).Plotter = object
    import tidecv

    truth, found = tidecv.Data("truth", DETECTIONS), tidecv.Data("found", DETECTIONS)
    dataset = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    for image in dataset["images"]:
        truth.add_image(image["id"], image["file_name"])
    for category in dataset["categories"]:
        truth.add_class(category["id"], category["name"])
    for a in dataset["annotations"]:
        truth.add_ground_truth(a["image_id"], a["category_id"], a["bbox"])
    for r in json.loads((folder / "results.json").read_text(encoding="utf-8")):
        found.add_detection(r["image_id"], r["category_id"], r["score"], r["bbox"])

    def run() -> float:
        tide = tidecv.TIDE()
        tide.evaluate(truth, found, mode=tidecv.TIDE.BOX)
        gains = [*tide.get_main_errors()["found"].values(), *tide.get_special_errors()["found"].values()]
        return float(sum(gains)) / 100

    return run


EVALUATORS = {
    "rar_mmdet": run_ours,
    "errors": run_errors,
    "errors in memory": run_errors_in_memory,
    "tidecv in memory": run_tidecv_in_memory,
    "lvis-api": run_lvis_api,
    "pycocotools": run_pycocotools,
    "faster-coco-eval": run_faster_coco_eval,
}


def worker(name: str, protocol: str, folder: Path) -> None:
    """Run one evaluator in this process; print one line of JSON."""
    run = EVALUATORS[name](folder, protocol)
    base = _resident_mib()
    _reset_peak()
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with open(os.devnull, "w") as null:
        stdout, sys.stdout = sys.stdout, null  # pycocotools prints its tables
        result = run()
        sys.stdout = stdout
    numbers = {
        "result": result,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu,
        "extra_mib": _peak_mib() - base,
        "peak_mib": _peak_mib(),
    }
    print(json.dumps(numbers))


def _resident_mib() -> float:
    return _status("VmRSS")


def _peak_mib() -> float:
    return _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark measures memory on Linux")


def _reset_peak() -> None:
    """Peak memory from now on (Linux: proc(5), clear_refs); where not allowed, the imports count as well."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory cannot be reset ({error}); it includes the imports", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------- main


def measure(name: str, protocol: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", name, protocol, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed with code {done.returncode}:\n{done.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {name:<18} {numbers['wall_s']:8.1f} s  ({numbers['cpu_s']:7.1f} s user CPU)  "
        f"+{numbers['extra_mib']:7.0f} MiB  (peak {numbers['peak_mib']:6.0f})  result {numbers['result']:.12f}",
        flush=True,
    )
    return numbers


def compare_lvis(folder: Path) -> dict[str, float]:
    print(f"LVIS protocol, {LVIS_IMAGES} images x {LVIS_CLASSES} classes x {DETECTIONS} detections")
    write_world(folder, LVIS_IMAGES, LVIS_CLASSES, 12.35)
    ours, api = measure("rar_mmdet", "lvis", folder), measure("lvis-api", "lvis", folder)
    fast = measure("faster-coco-eval", "lvis", folder)
    if ours["result"] != api["result"]:
        raise RuntimeError(f"AP differs: {ours['result']!r} here, {api['result']!r} by lvis-api")
    return {
        "lvis_speedup": api["wall_s"] / ours["wall_s"],
        "lvis_speedup_cpu": api["cpu_s"] / ours["cpu_s"],
        "lvis_memory_ratio": ours["extra_mib"] / api["extra_mib"],
        "lvis_speedup_over_faster_coco_eval": fast["wall_s"] / ours["wall_s"],
    }


def compare_coco(folder: Path) -> dict[str, float]:
    print(f"COCO protocol, {LVIS_IMAGES} images x {COCO_CLASSES} classes x {DETECTIONS} detections")
    write_world(folder, LVIS_IMAGES, COCO_CLASSES, 7.3)
    ours, api = measure("rar_mmdet", "coco", folder), measure("pycocotools", "coco", folder)
    measure("faster-coco-eval", "coco", folder)
    return {
        "coco_speedup": api["wall_s"] / ours["wall_s"],
        "coco_memory_ratio": ours["extra_mib"] / api["extra_mib"],
    }


def compare_errors(folder: Path) -> dict[str, float]:
    print(
        f"error types, {LVIS_IMAGES} images x {LVIS_CLASSES} classes x {DETECTIONS} detections, COCO's rules; files "
        "are read before the clock starts, which takes both about a second"
    )
    write_world(folder, LVIS_IMAGES, LVIS_CLASSES, 12.35)
    ours, tide = (measure(f"{name} in memory", "v3det", folder) for name in ("errors", "tidecv"))
    if abs(ours["result"] - tide["result"]) > 1e-6:
        raise RuntimeError(f"gains differ: {ours['result']!r} here, {tide['result']!r} by tidecv")
    return {
        "tide_speedup": tide["wall_s"] / ours["wall_s"],
        "tide_speedup_cpu": tide["cpu_s"] / ours["cpu_s"],
    }


def full_size(folder: Path) -> dict[str, float]:
    print(
        f"LVIS protocol at full size, {LVIS_VAL_IMAGES} images, {LVIS_VAL_IMAGES * DETECTIONS / 1e6:.1f} M detections"
    )
    write_world(folder, LVIS_VAL_IMAGES, LVIS_CLASSES, 12.35)
    lvis, fixed = (measure("rar_mmdet", protocol, folder) for protocol in ("lvis", "lvis-fixed"))
    numbers = {
        "lvis_full_s": lvis["wall_s"],
        "lvis_full_cpu_s": lvis["cpu_s"],
        "lvis_full_gib": lvis["peak_mib"] / 1024,
        "fixed_ap_full_s": fixed["wall_s"],  # the official numbers beside it
        "fixed_ap_full_gib": fixed["peak_mib"] / 1024,
    }
    probes = []
    for count in V3DET_PROBE_IMAGES:
        print(f"V3Det protocol, {count} images x {V3DET_CLASSES} classes x {DETECTIONS} detections")
        write_world(folder, count, V3DET_CLASSES, 7.39)
        probes.append(measure("pycocotools", "v3det", folder))
        measure("rar_mmdet", "v3det", folder)
    slope_s, start_s = np.polyfit(V3DET_PROBE_IMAGES, [p["cpu_s"] for p in probes], 1)
    slope_mib, start_mib = np.polyfit(V3DET_PROBE_IMAGES, [p["extra_mib"] for p in probes], 1)
    numbers["v3det_pycocotools_extrapolated_cpu_s"] = start_s + slope_s * V3DET_VAL_IMAGES
    numbers["v3det_pycocotools_extrapolated_gib"] = (start_mib + slope_mib * V3DET_VAL_IMAGES) / 1024
    print(f"V3Det protocol at full size, {V3DET_VAL_IMAGES} images x {DETECTIONS} detections")
    write_world(folder, V3DET_VAL_IMAGES, V3DET_CLASSES, 7.39)
    v3det = measure("rar_mmdet", "v3det", folder)
    numbers |= {"v3det_full_s": v3det["wall_s"], "v3det_full_cpu_s": v3det["cpu_s"]}
    errors = measure("errors", "v3det", folder)
    numbers |= {"errors_v3det_s": errors["wall_s"], "errors_v3det_gib": errors["peak_mib"] / 1024}
    return numbers | {"v3det_full_gib": v3det["peak_mib"] / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the numbers")
    parser.add_argument("--full", action="store_true", help="also at the size of LVIS val and V3Det val")
    parser.add_argument("--worker", nargs=3, metavar=("EVALUATOR", "PROTOCOL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker[0], args.worker[1], Path(args.worker[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        numbers = compare_lvis(Path(folder)) | compare_coco(Path(folder)) | compare_errors(Path(folder))
        if args.full:
            numbers |= full_size(Path(folder))
    for key, value in numbers.items():
        print(f"{key:<40} {value:10.3f}")
    if args.json is not None:
        Path(args.json).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
