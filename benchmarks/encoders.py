"""Region features against one crop per box, and what a photo's boxes cost in memory.

    python benchmarks/encoders.py [--boxes 300] [--model ViT-B-16] [--json FILE]

Random weights: the figures are of time and memory, not of quality.

`region_speedup`: seconds for the boxes of one photo by crops (cropping included) over those by one forward pass of the
same tower, both in this process; the aim is at least 20. `region_mib_one_box`: what a photo with one box needs beyond
the loaded encoder, at its peak; `region_mib_more_boxes`: how much more it is with all the boxes. Each in a process of
its own.

`text_speedup`: seconds for names in CLIP's 80 templates by open_clip, in the order of the file, batches without
the columns that are padding throughout, over those of `encode_texts`, median of three rounds; the aim is at least 2.
`text_speedup_over_full_length`: the same with batches at the tower's full length, which is how open_clip comes.
`fgclip2_load_over_weights`: by how much the peak of resident memory rises while FG-CLIP 2 loads and each of its numbers
is read once, over the size of its file; a second copy of the weights would make it 2. Base sizes, a smaller vocabulary.
`text_columns_*`: tokens that go through the tower, counted: at full length, in batches of the file's order without
their padding, of each text alone without any padding, and by `encode_texts`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
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
from rar_mmdet.encoders.openclip_texts import by_beginning, parts_of
from rar_mmdet.files import read_vocabulary
from rar_mmdet.memory.templates import CLIP80
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import make_boxes, make_image

HEIGHT, WIDTH = 480, 640
ROUNDS = 3  # of the texts
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


def _rise(call: Callable[[], Any]) -> float:
    """MiB by which the peak of resident memory exceeds what this process has now (Linux: proc(5), clear_refs)."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew; `ru_maxrss` would have the parent's
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def _rise_of_boxes(answer: Any, model: str, weights: str, dense_size: int | None, num_boxes: int) -> None:
    """MiB that the boxes of a photo need while they are encoded."""
    encoder = OpenClipRegionEncoder(model=model, pretrained=weights, dense_size=dense_size, device="cpu").load()
    image = make_image(HEIGHT, WIDTH)
    encoder.encode_regions(image, make_boxes(1, HEIGHT, WIDTH))  # what is set up once
    answer.put(_rise(lambda: encoder.encode_regions(image, make_boxes(num_boxes, HEIGHT, WIDTH))))


def _rise_of_loading(answer: Any, folder: str) -> None:
    """MiB that loading needs, each number being read once."""
    from rar_mmdet.encoders.fgclip2 import Fgclip2Model

    def load() -> None:
        model = Fgclip2Model.from_pretrained(folder, use_safetensors=True)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    answer.put(_rise(load))


def in_a_process(target: Callable[..., None], *args: Any) -> float:
    """The answer of a function, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=target, args=(answer, *args))
    process.start()
    rise: float = answer.get()
    process.join()
    return rise


def load_memory(folder: Path) -> dict[str, float]:
    """FG-CLIP 2 of random weights: the size of its file, and the peak while it loads."""
    from rar_mmdet.encoders.fgclip2 import Fgclip2Config, Fgclip2Model

    torch.manual_seed(0)
    Fgclip2Model(Fgclip2Config(text_config={"vocab_size": 32000})).save_pretrained(folder)
    weights = (folder / "model.safetensors").stat().st_size / 2**20
    rise = in_a_process(_rise_of_loading, str(folder))
    return {"fgclip2_weights_mib": weights, "fgclip2_load_over_weights": rise / weights}


def text_speed(args: argparse.Namespace, weights: str) -> dict[str, float]:
    """Seconds of each way for the same texts, the three in turn; they give the same vectors to rounding."""
    names = [name.replace("_", " ") for name in read_vocabulary(LVIS_NAMES)][:: args.name_step]
    texts = [template.replace("{}", name) for name in names for template in CLIP80]
    encoder = OpenClipEncoder(model=args.model, pretrained=weights).load()
    model = open_clip.create_model(args.model, pretrained=weights).eval()  # open_clip alone
    tokenizer = open_clip.get_tokenizer(args.model)

    @torch.inference_mode()
    def by_open_clip(texts: list[str], trimmed: bool) -> None:
        for start in range(0, len(texts), encoder.batch_size):
            tokens = tokenizer(texts[start : start + encoder.batch_size])
            length = int(tokens.argmax(dim=1).max()) + 1 if trimmed else tokens.shape[1]
            shorter = {"positional_embedding": model.positional_embedding[:length]}
            shorter["attn_mask"] = model.attn_mask[:length, :length]
            torch.func.functional_call(model, shorter, kwargs={"text": tokens[:, :length]})

    encoder.encode_texts(texts[:64])
    some = texts[: encoder.batch_size]  # at full length each text costs as much
    ways = (lambda: encoder.encode_texts(texts), lambda: by_open_clip(texts, True), lambda: by_open_clip(some, False))
    # In turn, so that what else the machine does falls on all of them.
    rounds = [[seconds(way, 1) for way in ways] for _ in range(ROUNDS)]
    ours, trimmed, full = (statistics.median(times) for times in zip(*rounds, strict=True))
    full *= len(texts) / len(some)
    print(f"{len(texts)} texts: {ours:.1f} s; open_clip in file order {trimmed:.1f} s, at full length {full:.1f} s")
    return {
        "text_speedup": statistics.median(trimmed / ours for ours, trimmed, _ in rounds),
        "text_speedup_over_full_length": full / ours,
        **text_columns(encoder, tokenizer(texts)),
    }


def text_columns(encoder: OpenClipEncoder, tokens: torch.Tensor) -> dict[str, float]:
    """What the ways cost where a column costs the same: no time is taken."""
    lengths = tokens.argmax(dim=1) + 1
    shared = 0
    rows = [tuple(ids[:length]) for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    for beginnings, members in parts_of(by_beginning(rows)):
        rest = torch.tensor(
            [len(rows[row]) - len(b) for b, own in zip(beginnings, members, strict=True) for row in own]
        )
        shared += len(beginnings) * max(map(len, beginnings))
        shared += sum(len(batch) * int(batch.max()) for batch in rest.sort().values.split(encoder.batch_size))
    return {
        "text_columns_full": float(tokens.numel()),
        "text_columns_file_order": float(sum(len(b) * int(b.max()) for b in lengths.split(encoder.batch_size))),
        "text_columns_no_padding": float(lengths.sum()),
        "text_columns_ours": float(shared),
    }


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
        one, many = (
            in_a_process(_rise_of_boxes, args.model, weights, args.dense_size, boxes) for boxes in (1, args.boxes)
        )
        figures |= {"region_mib_one_box": one, "region_mib_more_boxes": many - one}
        figures |= load_memory(Path(folder) / "fgclip2")
    for name, value in figures.items():
        print(f"{name:24}{value:10.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
