"""Region features against one crop per box, and what a photo's boxes cost in memory.

    python benchmarks/encoders.py [--boxes 300] [--model ViT-B-16] [--json FILE]

Random weights: the figures are of time and memory, not of quality.

`region_speedup`: seconds for the boxes of one photo by crops (cropping included) over those by one forward pass of the
same tower, both in this process; the aim is at least 20. `region_mib_more_boxes`: by how much the peak of resident
memory rises when a photo has all the boxes instead of one, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from rar_mmdet.encoders import OpenClipEncoder, OpenClipRegionEncoder
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import make_boxes, make_image

HEIGHT, WIDTH = 480, 640


def write_weights(model: str, folder: Path) -> str:
    """A file of random weights."""
    torch.manual_seed(0)
    state = open_clip.create_model(model, pretrained=None).state_dict()
    file = folder / "random.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(file))
    return str(file)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call; it was called before, so that nothing is set up in it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(args: argparse.Namespace, weights: str) -> dict[str, float]:
    """Both ways, one after the other."""
    image, boxes = make_image(HEIGHT, WIDTH), make_boxes(args.boxes, HEIGHT, WIDTH)
    regions = OpenClipRegionEncoder(model=args.model, pretrained=weights, dense_size=args.dense_size).load()
    regions.encode_regions(image, boxes)
    by_region = seconds(lambda: regions.encode_regions(image, boxes), 5)
    crops = OpenClipEncoder(model=args.model, pretrained=weights, batch_size=64).load()
    cropper = RegionCropper(size=crops.image_size)
    crops.encode_images(cropper.crop(image, boxes[:4]))
    by_crop = seconds(lambda: crops.encode_images(cropper.crop(image, boxes)), 1)
    return {"seconds_crops": by_crop, "seconds_regions": by_region, "region_speedup": by_crop / by_region}


def _peak_rise(model: str, weights: str, dense_size: int | None, num_boxes: int, answer: Any) -> None:
    encoder = OpenClipRegionEncoder(model=model, pretrained=weights, dense_size=dense_size, device="cpu").load()
    image = make_image(HEIGHT, WIDTH)
    encoder.encode_regions(image, make_boxes(1, HEIGHT, WIDTH))  # what is set up once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder.encode_regions(image, make_boxes(num_boxes, HEIGHT, WIDTH))
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory(args: argparse.Namespace, weights: str, num_boxes: int) -> float:
    """MiB by which the peak rises over a photo with one box."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_peak_rise, args=(args.model, weights, args.dense_size, num_boxes, answer))
    process.start()
    rise: float = answer.get()
    process.join()
    return rise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="a vision transformer of open_clip")
    parser.add_argument("--boxes", type=int, default=300, help="boxes of the photo")
    parser.add_argument("--dense-size", type=int, help="side the photo is squeezed to; default: the tower's own")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(args.model, Path(folder))
        figures = speed(args, weights)
        figures["region_mib_more_boxes"] = memory(args, weights, args.boxes)
    for name, value in figures.items():
        print(f"{name:24}{value:10.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
