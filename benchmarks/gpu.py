"""The figures of a CUDA card, with random weights of published sizes: no download, one file, under nine minutes.

    python benchmarks/gpu.py [--json gpu.json]

Without CUDA it says so and ends with status 0. Measured on the card, in bfloat16 where nothing else is said:

matrix       TFLOP/s of one large matrix product: the limit that shares are of
cut          crops/s of 336 px from a photo of 1920 x 1280 with 300 boxes, on the card and on the CPU (all threads);
             how far both are from each other, in grey levels
encode       images/s of CLIP ViT-B/16 in float16, its share of the matrix limit, and how far its vectors are from
             those of the CPU in float32, as a cosine, in float16 and bfloat16
demo         where the demo world is (`make demo` makes it): the test photos recognised by RAR on the CPU in float32 and
             on the card in float32 and bfloat16; regions that get the same name, the largest difference of scores
per ranker   crops/s of the four ways to ask at K = 5 and of the released script's way (one `generate` at batch 1);
             share of the matrix limit by letters (2 x parameters of the decoder x tokens); peak memory
training     LLaVA-1.5-7B with LoRA as `rar-mmdet finetune train` lays it: samples/s and peak memory of a step (forward,
             backward, AdamW) with activation checkpointing, per batch

The inputs are token ids and pixels, drawn at random in the lengths of a real question: what is timed is the model and
this project's two passes behind it, not tokenizers and servers. Replies have a fixed length, for random weights never
stop by themselves. What stands in the way of a model (memory, time) is said in its row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from rar_mmdet.calibration.annotated import find_regions
from rar_mmdet.rankers.native import register_native_models
from rar_mmdet.rankers.prefix import label_log_probs, sequence_log_probs
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper
from rar_mmdet.structures import ImageRegions, Recognition
from rar_mmdet.testing import make_boxes, make_image

ROOT = Path(__file__).parents[1]
WORLD = ROOT / "data" / "demo"
K = 5
NAME_TOKENS, QUESTION_TOKENS = 4, 60  # of a name with the end of the turn; of a question with five names; ours
REPLY_TOKENS = 40  # of a list of five names
MOST_SECONDS = 480  # after which no further model is begun
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


@dataclass(frozen=True)
class Shape:
    """A model of a published size: its configuration (from the published config.json), and a picture in tokens."""

    name: str
    config: Callable[[], Any]
    image_tokens: int
    batch: int
    grid: tuple[int, int] | None = None  # Qwen: patches of one picture, rows and columns
    side: int = 336  # of the picture; of no meaning with a grid

    def pixels(self, config: Any, batch: int) -> dict[str, Tensor]:
        """The picture inputs of a batch."""
        if self.grid is None:
            return {"pixel_values": torch.rand(batch, 3, self.side, self.side)}
        rows, columns = self.grid
        vision = config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.rand(batch * rows * columns, width),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * batch),
        }


def llava_config() -> Any:
    """LLaVA-1.5-7B: CLIP ViT-L/14 at 336 px and Llama 2 7B."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **CLIP_L),
        text_config=LlamaConfig(vocab_size=32064),
        image_token_index=32000,
        vision_feature_select_strategy="default",
    )


def xcomposer_config() -> Any:
    """InternLM-XComposer2-VL-7B."""
    from rar_mmdet.rankers.internlm_xc2 import IXC2Config

    return IXC2Config(img_size=490)


def qwen3_config(hidden: int, inner: int, layers: int, heads: int, vision: dict[str, int]) -> Any:
    """Qwen3-VL of a size."""
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6},
        },
        vision_config={**vision, "out_hidden_size": hidden, "patch_size": 16},
        tie_word_embeddings=hidden == 2048,  # of the published sizes the 2B alone
    )  # fmt: skip


SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
LLAVA = Shape("LLaVA-1.5-7B", llava_config, 576, 16)
SHAPES = (
    # 384 px: 24 x 24 patches of 16 px, merged 2 x 2 into 144 tokens.
    Shape(
        "Qwen3-VL-2B",
        lambda: qwen3_config(2048, 6144, 28, 16, {**SMALL_TOWER, "deepstack_visual_indexes": [5, 11, 17]}),  # type: ignore[dict-item]
        144, 64, (24, 24),
    ),
    Shape(
        "Qwen3-VL-8B",
        lambda: qwen3_config(4096, 12288, 36, 32, {**LARGE_TOWER, "deepstack_visual_indexes": [8, 16, 24]}),  # type: ignore[dict-item]
        144, 32, (24, 24),
    ),
    LLAVA,
    Shape("InternLM-XComposer2-7B", xcomposer_config, 1225, 8, side=490),
)  # fmt: skip


@dataclass
class Clock:
    """Seconds on a device; everything that was begun is waited for."""

    device: torch.device
    started: float = field(default_factory=time.perf_counter)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], rounds: int = 3) -> float:
        """The median of some rounds, after one that pays for what is prepared once."""
        spent = []
        for _ in range(rounds + 1):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            spent.append(time.perf_counter() - begun)
        return sorted(spent[1:])[rounds // 2]

    @property
    def is_over(self) -> bool:
        """Whether there is no time for another model."""
        return time.perf_counter() - self.started > MOST_SECONDS


def measure_matrix(clock: Clock, dtype: torch.dtype, side: int = 8192) -> float:
    """TFLOP/s of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / clock.seconds(lambda: a @ b, rounds=9) / 1e12


def measure_cutting(clock: Clock, height: int = 1280, width: int = 1920, count: int = 300) -> dict[str, float]:
    """Crops/s on the device and on the CPU, and the difference between both in grey levels."""
    photo, boxes = make_image(height, width), make_boxes(count, height, width)
    cropper = RegionCropper(size=336, scale=AreaScale(), background=BlurBackground())
    there = torch.from_numpy(photo).permute(2, 0, 1).to(clock.device)
    apart = (cropper.crop(there, boxes).cpu().short() - cropper.crop(photo, boxes).short()).abs()
    return {
        "cut_crops_per_s": count / clock.seconds(lambda: cropper.crop(there, boxes)),
        "cut_cpu_crops_per_s": count / clock.seconds(lambda: cropper.crop(photo, boxes)),
        "cut_cpu_threads": torch.get_num_threads(),
        "cut_grey_levels_most": float(apart.max()),
        "cut_grey_levels_mean": float(apart.double().mean()),
    }


@torch.inference_mode()
def measure_encoding(clock: Clock, limit: float, model: str = "ViT-B-16", batch: int = 512) -> dict[str, float]:
    """Images/s of a CLIP tower, share of the limit, cosines to the CPU's vectors."""
    import open_clip
    from torch.utils.flop_counter import FlopCounterMode

    tower = open_clip.create_model(model, pretrained=None).visual.eval()
    side = tower.image_size[0] if isinstance(tower.image_size, tuple) else tower.image_size
    images = torch.randn(batch, 3, side, side)
    some = images[:8]
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel is unknown to the counter
    with FlopCounterMode(display=False) as counter:
        exact = tower(some)
    torch.backends.mha.set_fastpath_enabled(True)
    flops = counter.get_total_flops() / len(some)
    result = {"encode_gflops_per_image": flops / 1e9}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        tower.to(clock.device, dtype)
        vectors = tower(some.to(clock.device, dtype)).float().cpu()
        result[f"encode_{name}_cosine_least"] = float(torch.cosine_similarity(vectors, exact).min())
    there = images.to(clock.device, torch.float16)
    result["encode_images_per_s"] = batch / clock.seconds(lambda: tower(there))
    result["encode_share_of_limit"] = flops * result["encode_images_per_s"] / (limit * 1e12)
    return result


def recognise_demo(device: str, precision: str, photos: int | None) -> tuple[list[Recognition], Tensor, float]:
    """RAR's answers for the demo's annotated boxes, their true labels, and seconds without what is done once."""
    config = Config.fromfile(ROOT / "configs" / "demo" / "rar_demo.py").model.recognizer
    config.encoder.precision = {"float32": "fp32", "bfloat16": "bf16"}[precision]
    config.ranker.loading.dtype = precision
    names = WORLD / "annotations" / "lvis_demo_test.json"
    recognizer = RegionRecognizer.from_config(config, vocabulary=names).to(device)
    annotations = json.loads(names.read_text(encoding="utf-8"))
    regions = find_regions(annotations, WORLD, photos)
    label_of = {category["id"]: row for row, category in enumerate(annotations["categories"])}
    truth = torch.tensor([label_of[record["category_id"]] for record in regions.annotations])

    def recognise(image: int) -> Recognition:
        photo = torch.from_numpy(regions.photo(image)).permute(2, 0, 1).to(device)
        return recognizer.recognize([ImageRegions(photo, regions.boxes_xyxy[regions.rows(image)])])[0]

    recognise(0)  # loads the models and the memory
    begun = time.perf_counter()
    results = [recognise(image) for image in range(len(regions.files))]
    return results, truth, time.perf_counter() - begun


def measure_demo(clock: Clock, photos: int | None = None) -> dict[str, Any]:
    """The demo on the CPU and on the device: equal names, the largest difference of scores, right names, photos/s."""
    if not (WORLD / "annotations").is_dir():
        return {"left_out": f"there is no demo world at {WORLD}; python demo/make_world.py makes it"}
    exact, truth, seconds = recognise_demo("cpu", "float32", photos)
    best = torch.cat([one.best_ids for one in exact])
    result: dict[str, Any] = {
        "regions": len(truth),
        "cpu float32": {"right": float((best == truth).double().mean()), "photos_per_s": len(exact) / seconds},
    }
    for precision in ("float32", "bfloat16"):
        other, _, seconds = recognise_demo(str(clock.device), precision, photos)
        ours = torch.cat([one.best_ids for one in other])
        same = ours == best
        five = [[one.shortlist.category_ids[:, :K].sort(1)[0] for one in results] for results in (exact, other)]
        apart = torch.cat([(a.best_scores - b.best_scores).abs() for a, b in zip(exact, other, strict=True)])
        result[f"{clock.device.type} {precision}"] = {
            "right": float((ours == truth).double().mean()),
            "same_name": float(same.double().mean()),
            "same_candidates": float((torch.cat(five[0]) == torch.cat(five[1])).all(1).double().mean()),  # as a set
            "score_apart_most": float(apart[same].max()),  # of the same name
            "photos_per_s": len(other) / seconds,
        }
    return result


def build(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The model with random weights, made on the device."""
    from transformers import AutoModelForImageTextToText

    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def make_inputs(shape: Shape, model: Any, batch: int) -> dict[str, Tensor]:
    """Picture and question of a batch, as a processor would give them."""
    config = model.config
    image_id = getattr(config, "image_token_id", None) or config.image_token_index
    text = torch.randint(10, min(1000, config.get_text_config().vocab_size - 8), (batch, QUESTION_TOKENS))
    picture = torch.full((batch, shape.image_tokens), image_id)
    ids = torch.cat([text[:, :10], picture, text[:, 10:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shape.pixels(config, batch)}
    if shape.grid is not None:
        inputs["mm_token_type_ids"] = (ids == image_id).long()
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }


def some_tokens(count: int, length: int) -> list[list[int]]:
    """Continuations that differ."""
    return [[11 + (7 * i + 13 * place) % 300 for place in range(length)] for i in range(count)]


@torch.inference_mode()
def measure_ranker(shape: Shape, clock: Clock, dtype: torch.dtype, limit: float, reply: int) -> dict[str, Any]:
    """Crops/s of each way, of the released way, the share of the limit, peak memory (GiB)."""
    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(clock.device)
    model = build(shape.config(), clock.device, dtype)
    inputs, one = make_inputs(shape, model, shape.batch), make_inputs(shape, model, 1)
    names, labels = some_tokens(K, NAME_TOKENS), [[token] for token in range(20, 20 + K)]
    shifts, questions = some_tokens(K, QUESTION_TOKENS - 20), some_tokens(K, 12)
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ways: dict[str, Callable[[], Any]] = {
        "likelihood": lambda: sequence_log_probs(model, inputs, [names] * shape.batch),
        "letter": lambda: label_log_probs(model, inputs, [[[]]] * shape.batch, labels),
        "letter_all_shifts": lambda: label_log_probs(model, inputs, [shifts] * shape.batch, labels),
        "yesno": lambda: label_log_probs(model, inputs, [questions] * shape.batch, labels[:2]),
        "generate": lambda: model.generate(**inputs, max_new_tokens=reply, min_new_tokens=reply, **settings),
    }
    row: dict[str, Any] = {name: shape.batch / clock.seconds(work) for name, work in ways.items()}
    released = clock.seconds(lambda: model.generate(**one, max_new_tokens=reply, min_new_tokens=reply, **settings))
    row |= {"released": 1 / released, "batch": shape.batch, "parameters": sum(p.numel() for p in model.parameters())}
    decoder = sum(p.numel() for p in model.get_decoder().parameters())
    flops = 2 * decoder * inputs["input_ids"].shape[1] * row["letter"]
    row["share_of_limit"] = flops / (limit * 1e12)
    if clock.device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(clock.device) / 2**30
    return row


def measure_training(shape: Shape, clock: Clock, dtype: torch.dtype, batches: Sequence[int]) -> dict[str, Any]:
    """Samples/s and peak memory (GiB) of a training step with LoRA, per batch."""
    try:
        import peft  # noqa: F401
    except ImportError:
        return {"left_out": "peft is not installed: pip install 'rar_mmdet[train]'"}
    from rar_mmdet.finetune.settings import LoraSettings
    from rar_mmdet.finetune.training import with_lora

    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
    settings = LoraSettings()
    model = with_lora(build(shape.config(), clock.device, dtype), settings, shape.name, seed=0).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5)
    result: dict[str, Any] = {"rank": settings.rank, "learned": sum(p.numel() for p in learned)}
    for batch in batches:
        inputs = make_inputs(shape, model, batch)
        labels = inputs["input_ids"].clone()
        labels[:, :-NAME_TOKENS] = -100  # the loss is on the answer alone

        def step(inputs: dict[str, Tensor] = inputs, labels: Tensor = labels) -> None:
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if clock.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(clock.device)
        result[f"batch {batch}"] = row = {"samples_per_s": batch / clock.seconds(step)}
        if clock.device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated(clock.device) / 2**30
    return result


def measure(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape] = SHAPES,
    side: int = 8192,
    photo: tuple[int, int, int] = (1280, 1920, 300),
    encoder: tuple[str, int] = ("ViT-B-16", 512),
    demo_photos: int | None = None,
    reply: int = REPLY_TOKENS,
    trained: Shape = LLAVA,
    batches: Sequence[int] = (1, 4, 16),
) -> dict[str, Any]:
    """All figures; those of a model that does not fit are the reason."""
    register_native_models()
    torch.manual_seed(0)
    clock = Clock(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    limit = measure_matrix(clock, dtype, side)
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "matrix_tflops": limit}
    result |= measure_cutting(clock, *photo)
    result |= measure_encoding(clock, limit, *encoder)
    print(json.dumps(result, default=float), flush=True)
    result["demo"] = measure_demo(clock, demo_photos)
    print(json.dumps(result["demo"], default=float), flush=True)
    rankers = result["rankers"] = {}
    for shape in shapes:
        if clock.is_over:
            rankers[shape.name] = {"left_out": f"more than {MOST_SECONDS} s had passed"}
            continue
        try:
            rankers[shape.name] = measure_ranker(shape, clock, dtype, limit, reply)
        except torch.OutOfMemoryError as error:
            rankers[shape.name] = {"left_out": f"out of memory: {error}"}
        print(f"{shape.name}: {json.dumps(rankers[shape.name], default=float)}", flush=True)
    if not clock.is_over:
        result["training"] = measure_training(trained, clock, dtype, batches)
        print(json.dumps(result["training"], default=float), flush=True)
    result["seconds"] = time.perf_counter() - clock.started
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device on this machine: nothing is measured")
        return
    result = measure(torch.device("cuda"), torch.bfloat16)
    print(json.dumps(result, indent=2, default=float))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
