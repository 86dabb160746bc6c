"""Region features against one crop per box, and what a photo's boxes cost in memory.

    python benchmarks/encoders.py [--boxes 300] [--model ViT-B-16] [--json FILE]

Random weights: the figures are of time and memory, not of quality.

`region_speedup`: seconds for the boxes of one photo by crops (cropping included) over those by one forward pass of the
same tower, both in this process; the aim is at least 20. `region_mib_more_boxes`: by how much the peak of resident
memory rises when a photo has all the boxes instead of one, in a process of its own.

`text_speedup`: seconds for names in CLIP's 80 templates in the order of the file, each text at the tower's full length
as open_clip encodes it, over those of `encode_texts`, which sorts by number of tokens and drops the padding.
`text_speedup_by_order`: over batches in the order of the file whose padding is dropped too; what sorting alone adds.
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
from rar_mmdet.files import read_vocabulary
from rar_mmdet.memory.templates import CLIP80
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import make_boxes, make_image

HEIGHT, WIDTH = 480, 640
LVIS_NAMES = Path(__file__).resolve().parents[1] / "rar_mmdet" / "files" / "lvis_v1_names.json"


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


def text_speed(args: argparse.Namespace, weights: str) -> dict[str, float]:
    """Seconds of each way for the same texts; the three give the same vectors to rounding."""
    names = [name.replace("_", " ") for name in read_vocabulary(LVIS_NAMES)][:: args.name_step]
    texts = [template.replace("{}", name) for name in names for template in CLIP80]
    encoder = OpenClipEncoder(model=args.model, pretrained=weights).load()
    batches = [texts[start : start + encoder.batch_size] for start in range(0, len(texts), encoder.batch_size)]
    state, device = encoder._ready()
    in_file_order = texts[: 16 * encoder.batch_size]  # at full length, some of them: each text costs as much

    @torch.inference_mode()
    def at_full_length() -> None:
        for start in range(0, len(in_file_order), encoder.batch_size):
            tokens = state.tokenizer(in_file_order[start : start + encoder.batch_size])
            state.model.encode_text(tokens.to(device), normalize=True)

    encoder.encode_texts(texts[:64])
    ours = seconds(lambda: encoder.encode_texts(texts), 1)
    by_order = seconds(lambda: [encoder.encode_texts(batch) for batch in batches], 1)
    full = seconds(at_full_length, 1) * len(texts) / len(in_file_order)
    print(f"{len(texts)} texts: {ours:.1f} s; batches in file order {by_order:.1f} s, at full length {full:.1f} s")
    return {"text_speedup": full / ours, "text_speedup_by_order": by_order / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="a vision transformer of open_clip")
    parser.add_argument("--boxes", type=int, default=300, help="boxes of the photo")
    parser.add_argument("--dense-size", type=int, help="side the photo is squeezed to; default: the tower's own")
    parser.add_argument("--name-step", type=int, default=40, help="every so many of LVIS's names (default: 40)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(args.model, Path(folder))
        figures = speed(args, weights)
        figures |= text_speed(args, weights)
        figures["region_mib_more_boxes"] = memory(args, weights, args.boxes)
    for name, value in figures.items():
        print(f"{name:24}{value:10.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
