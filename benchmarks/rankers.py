"""Rankers against the released script's way: one `generate` of up to 512 tokens per crop, one crop at a time.

    python benchmarks/rankers.py --json rankers.json         # speed, memory, server; all ratios from this one run
    python benchmarks/rankers.py --table                     # the demo tables of docs/rankers.md
    python benchmarks/rankers.py --none-of-these curve.png   # its table and figure of unknown regions
    python benchmarks/rankers.py --draws 5                   # how much that varies with the classes that are hidden

JSON keys:
`likelihood_speedup`, `letter_speedup`: CPU seconds per crop, baseline over ours, the smaller of both models.
`server_overhead`: seconds for 1,000 crops over 1,000 x 0.2 s / 64.
`prefill_overhead`: CPU seconds of `likelihood` on the random LLaVA over one bare forward pass on the same image and
    prompt tokens at the same batch.
`client_crops_per_s`: cut, encode to JPEG, send and read at 336 px against a server that answers at once, on the same
    machine; `client_cpu_ms_per_crop` is what the client takes of it.
`decisions_overhead`: a decision server over letters, both at once, by the same client.
`k50_ratio`: K = 50 over K = 5 with likelihoods of the demo ranker (letters end at 26).
Speeds need the demo ranker and world: `python demo/make_world.py --out data/demo --seed 0`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rar_mmdet.calibration import AnnotatedRegions, Scorer, find_regions
from rar_mmdet.calibration.none_of_these import OpenSet, hide_categories, measure, recognise_open_set
from rar_mmdet.calibration.none_of_these import draw as draw_risk
from rar_mmdet.calibration.ranker import labels_of
from rar_mmdet.emission import TopPairs
from rar_mmdet.fusion import LogLikFusion, NoneOfThese
from rar_mmdet.rankers import (
    DecisionRanker,
    Generate,
    Letter,
    Likelihood,
    OpenAIRanker,
    Question,
    Ranker,
    TransformersRanker,
    YesNo,
)
from rar_mmdet.rankers.calibration import threshold_for
from rar_mmdet.recognizer import RegionRecognizer
from rar_mmdet.regions import AreaScale, RegionCropper
from rar_mmdet.scoring import load_annotation_file
from rar_mmdet.structures import RankStatus, Shortlist
from rar_mmdet.testing import make_boxes, make_image, make_shortlist

ROOT = Path(__file__).resolve().parents[1]
REPLY_SECONDS, CONCURRENCY, SERVER_CROPS = 0.2, 64, 1000
PROMPTS = ROOT / "demo/prompts.json"  # the only questions the demo ranker was trained to answer
BATCH = 32  # crops per forward pass of ours; the best of 8 to 64 for the demo ranker on a CPU


# The server path.


class _Answers(asyncio.Protocol):
    """One connection of a server that reads a request and writes an answer, and does as little else as it can.

    It shares the processors with the client that is measured: every microsecond of it is missing there.
    """

    entry = {"token": "A", "logprob": -0.1, "bytes": None}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "A"},
        "logprobs": {"content": [{**entry, "top_logprobs": [entry, {**entry, "token": "B", "logprob": -2.0}]}]},
    }
    completion = json.dumps({"object": "chat.completion", "model": "m", "choices": [choice]}).encode()
    models = json.dumps({"object": "list", "data": []}).encode()
    number = 0

    def __init__(self, delay: float) -> None:
        self.delay, self.head, self.parts, self.missing = delay, b"", [], 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.missing:
            self.head, _, data = (self.head + data).partition(b"\r\n\r\n")
            _, _, length = self.head.lower().partition(b"content-length:")
            self.missing = int(length.split(b"\r\n", 1)[0]) if length else 0
        self.missing -= len(data)
        self.parts.append(data)
        if self.missing == 0:
            text = self.models
            if self.head.startswith(b"POST"):
                text = self.decide(b"".join(self.parts)) if b"/decisions" in self.head[:40] else self.completion
            self.head, self.parts = b"", []
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
            if self.delay and text is not self.models:
                asyncio.get_running_loop().call_later(self.delay, self.transport.write, answer)
            else:
                self.transport.write(answer)

    def decide(self, data: bytes) -> bytes:
        _Answers.number += 1
        begin = data.index(b'"questions"')  # behind the picture, as the project's client sends it
        answers = {}
        for i, question in enumerate(json.loads(b"{" + data[begin:])["questions"]):
            shares = [1 + (self.number + j) % 2 for j in range(len(question["options"]))]
            shares[0] += i
            names = [option["name"] for option in question["options"]]
            probabilities = {name: share / sum(shares) for name, share in zip(names, shares, strict=True)}
            answers[question["id"]] = {"type": "choice", "label_mass": 0.9, "probabilities": probabilities}
        return json.dumps({"model": "m", "answers": answers}).encode()


async def _serve(port: Any, delay: float) -> None:
    """A bare HTTP/1.1 server that answers every request after `delay` seconds: chat completions, and decisions."""
    make = lambda: _Answers(delay)  # noqa: E731
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, backlog=256)
    port.value = server.sockets[0].getsockname()[1]
    await server.serve_forever()


def _run_server(port: Any, delay: float) -> None:
    asyncio.run(_serve(port, delay))


@contextmanager
def serving(delay: float) -> Iterator[str]:
    """The base_url of such a server, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    server = context.Process(target=_run_server, args=(port, delay), daemon=True)
    server.start()
    while port.value == 0:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port.value}/v1"
    finally:
        server.terminate()


def measure_client(side: int = 336, count: int = 1024, rounds: int = 3) -> dict[str, float]:
    """Crops of photos to a server that answers at once: what the client alone can do, cutting included.

    Two threads, as many as the yardstick has cores, each cut 64 crops and hand them on. CPU seconds are the client's
    own, of all its threads: where other jobs take part of the machine, they say more than crops per second.
    """
    photo, boxes = make_image(960, 1280), make_boxes(count, 960, 1280)
    cropper = RegionCropper(size=side, scale=AreaScale())
    names, shortlist = [f"category {i}" for i in range(100)], make_shortlist(count, 5, 100)
    spent: dict[str, list[tuple[float, float]]] = {}

    def ask(ranker: Ranker, start: int, names: list[str]) -> None:
        rows = slice(start, start + 64)  # 22 MB: larger arrays are mapped anew each time, 1 ms a crop on a virtual CPU
        ranking = ranker.rank(cropper.crop(photo, boxes[rows]), shortlist[rows], names)
        assert (ranking.status == RankStatus.OK).all(), "the loopback server lost requests"

    with serving(0.0) as url, ThreadPoolExecutor(2) as pool:
        settings: dict[str, Any] = {"model": "m", "image_size": side, "server": {"max_concurrency": CONCURRENCY}}
        ways = {
            "letter": OpenAIRanker(base_url=url, jpeg_quality=95, **settings),
            "letter_png": OpenAIRanker(base_url=url, **settings),
            "decisions": DecisionRanker(base_url=url, jpeg_quality=95, **settings),
        }
        for number in range(rounds + 1):  # interleaved; the first round pays for what is prepared once
            for name, ranker in ways.items():
                fresh = [f"{n} {number}" for n in names]
                started, cpu = time.perf_counter(), time.process_time()
                list(pool.map(lambda start, r=ranker, n=fresh: ask(r, start, n), range(0, count, 64)))
                spent.setdefault(name, []).append((time.perf_counter() - started, time.process_time() - cpu))
    medians = [{name: sorted(row[i] for row in rows[1:])[rounds // 2] for name, rows in spent.items()} for i in (0, 1)]
    wall, cpu_seconds = medians
    return {
        "client_crops_per_s": count / wall["letter"],
        "client_crops_per_s_png": count / wall["letter_png"],
        "client_cpu_ms_per_crop": 1e3 / count * cpu_seconds["letter"],
        "decisions_overhead": wall["decisions"] / wall["letter"],
        "decisions_overhead_cpu": cpu_seconds["decisions"] / cpu_seconds["letter"],
    }


def measure_server(side: int) -> dict[str, float]:
    """1,000 crops at concurrency 64 against a server that takes 200 ms."""
    with serving(REPLY_SECONDS) as url:
        ranker = OpenAIRanker(
            base_url=url,
            model="m",
            server={"max_concurrency": CONCURRENCY},
            image_size=side,
        )
        crops = torch.randint(0, 256, (SERVER_CROPS, 3, side, side), dtype=torch.uint8)
        shortlist = make_shortlist(SERVER_CROPS, 5, 100)
        names = [f"category {i}" for i in range(100)]
        ranker.rank(crops[:CONCURRENCY], shortlist[:CONCURRENCY], [f"warm {n}" for n in names])
        cpu = time.process_time()
        started = time.perf_counter()
        ranking = ranker.rank(crops, shortlist, names)
        seconds = time.perf_counter() - started
    assert (ranking.status == RankStatus.OK).all(), "the loopback server lost requests"
    ideal = SERVER_CROPS * REPLY_SECONDS / CONCURRENCY
    return {
        "server_overhead": seconds / ideal,
        "server_seconds": seconds,
        "server_ideal_seconds": ideal,
        "server_client_cpu_seconds": time.process_time() - cpu,
    }


# Local models.


def make_ranker(folder: Path, way: Any, **settings: Any) -> TransformersRanker:
    """The ranker of a folder, with the demo's tower made known to transformers."""
    loading = {"modules": [ROOT / "demo/tiny_vision.py"]}
    return TransformersRanker(model=folder, ask=way, limits={"max_fallback_rate": 1.0}, loading=loading, **settings)


def make_random_llava(folder: Path) -> Path:
    """About 100 M random parameters: CLIP-like tower, 144 visual tokens, 12 decoder layers of width 640."""
    from transformers import (
        AutoProcessor,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from rar_mmdet.rankers.native import import_modules

    import_modules([ROOT / "demo/tiny_vision.py"])
    tokenizer = AutoProcessor.from_pretrained(ROOT / "demo/weights/ranker").tokenizer
    side, patch = 168, 14
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=side,
            patch_size=patch,
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=6,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=704,
            intermediate_size=2048,
            num_hidden_layers=13,
            num_attention_heads=11,
            num_key_value_heads=11,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch) ** 2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    print(f"random LLaVA: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")
    model.save_pretrained(folder)
    size = {"shortest_edge": side}
    images = CLIPImageProcessor(size=size, crop_size={"height": side, "width": side})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def time_baseline(ranker: TransformersRanker, crops: torch.Tensor, shortlist: Any, names: list[str]) -> float:
    """CPU seconds per crop of the released script's way; stops at the end-of-turn token only."""
    loaded = ranker.loaded
    seconds = []
    for row in range(len(crops)):
        candidates = tuple(names[i] for i in shortlist.category_ids[row].tolist())
        question = Question(crops[row], candidates)
        text = loaded.dialogue.text(ranker.ask.texts(question)[0])
        started = time.process_time()
        with torch.inference_mode():
            inputs = loaded.inputs([question], [text])
            loaded.model.generate(**inputs, max_new_tokens=512, do_sample=False, pad_token_id=loaded.pad_id)
        seconds.append(time.process_time() - started)
    return sum(seconds) / len(seconds)


def measure_model(folder: Path, crops: torch.Tensor, shortlist: Any, names: list[str], rounds: int, base: int) -> dict:
    """CPU seconds per crop (one thread, so wall seconds of an idle machine), interleaved, median of `rounds`."""
    ways = {
        "likelihood": Likelihood(prompts=PROMPTS),
        "letter": Letter(num_shifts=1, prompts=PROMPTS),
        "letter_debiased": Letter(prompts=PROMPTS),
        "yesno": YesNo(prompts=PROMPTS),
        "generate_batched": Generate(prompts=PROMPTS),
    }
    baseline = make_ranker(folder, Generate(prompts=PROMPTS), batch_size=1)
    time_baseline(baseline, crops[:1], shortlist[:1], names)
    spent: dict[str, list[float]] = {name: [] for name in ["baseline", *ways]}
    for _ in range(rounds):
        spent["baseline"].append(time_baseline(baseline, crops[:base], shortlist[:base], names))
        for name, way in ways.items():
            ranker = make_ranker(folder, way, batch_size=BATCH)
            # A whole batch: the first of a shape pays for what the libraries prepare once, as the baseline's did.
            ranker.rank(crops[:BATCH], shortlist[:BATCH], [f"warm {n}" for n in names])
            started = time.process_time()
            ranker.rank(crops, shortlist, names)
            spent[name].append((time.process_time() - started) / len(crops))
    return {name: sorted(values)[len(values) // 2] for name, values in spent.items()}


def measure_prefill(folder: Path, crops: torch.Tensor, shortlist: Any, names: list[str], rounds: int) -> float:
    """CPU seconds of `likelihood` over those of one bare forward pass on the same image and prompt tokens."""
    ranker = make_ranker(folder, Likelihood(prompts=PROMPTS), batch_size=len(crops))
    loaded, ratios = ranker.loaded, []
    for number in range(rounds + 1):  # the first pays for what the libraries prepare once
        fresh = crops.clone()
        fresh[:, :, 0, 0] = number  # so that no answer is known
        questions = [
            Question(crop, tuple(sorted(names[i] for i in row)))
            for crop, row in zip(fresh, shortlist.category_ids.tolist(), strict=True)
        ]
        inputs = loaded.inputs(questions, [loaded.dialogue.text(ranker.ask.texts(q)[0]) for q in questions])
        with torch.inference_mode():
            started = time.process_time()
            loaded.model(**inputs, use_cache=False, logits_to_keep=1)
            bare = time.process_time() - started
        started = time.process_time()
        ranker.rank(fresh, shortlist, names)
        ratios.append((time.process_time() - started) / bare)
    return sorted(ratios[1:])[rounds // 2]


def measure_k50(demo: Path, world: Demo, rounds: int) -> float:
    """CPU seconds per crop at K = 50 over K = 5: the image is read once, the names are short."""
    spent: dict[int, list[float]] = {5: [], 50: []}
    crops = world.crops[:BATCH]
    for number in range(rounds + 1):
        for k in spent:
            ranker = make_ranker(demo, Likelihood(prompts=PROMPTS, prompt="name"), batch_size=BATCH)
            _ = ranker.loaded  # reads the weights
            started = time.process_time()
            ranker.rank(crops, world.shortlist[:BATCH].head(k), world.names)
            if number:
                spent[k].append(time.process_time() - started)
    return sorted(spent[50])[rounds // 2] / sorted(spent[5])[rounds // 2]


def measure_memory(folder: Path, names: list[str]) -> dict[str, float]:
    """Growth of the peak resident size (MB) from 64 to 512 crops at batch 16: bounded by the batch, not by R."""
    ranker = make_ranker(folder, Likelihood(prompts=PROMPTS), batch_size=16)
    peaks = []
    for seed, count in enumerate((64, 512)):
        crops = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
        ranker.rank(crops, make_shortlist(count, 5, len(names), seed=seed), names)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"peak_mb_64_crops": peaks[0], "peak_mb_512_crops": peaks[1], "crops_mb": 448 * 3 * 64 * 64 / 2**20}


@dataclass(frozen=True)
class Demo:
    """Annotated regions of the demo world, with what retrieval says of them; small enough to be held."""

    names: list[str]
    regions: AnnotatedRegions
    truth: torch.Tensor  # (R,) labels
    crops: torch.Tensor  # (R, 3, S, S) uint8, for the ranker
    shortlist: Shortlist  # (R, N)
    score: Scorer

    def summary(self, scores: torch.Tensor) -> dict[str, float]:
        """AP of (R, N) scores of the shortlist's categories."""
        images = range(len(self.regions.files))
        rows = [self.regions.rows(image) for image in images]
        return self.score.summary(
            (image, scores[own], self.shortlist.category_ids[own]) for image, own in zip(images, rows, strict=True)
        )


def load_demo(split: str, limit: int | None) -> Demo:
    """A split of the demo world."""
    file = ROOT / f"data/demo/annotations/lvis_demo_{split}.json"
    annotations = load_annotation_file(file)
    recognizer = RegionRecognizer.from_config(ROOT / "configs/demo/rar_demo_likelihood.py", str(file))
    recognizer.encoder.load("cpu")
    regions = find_regions(annotations, ROOT / "data/demo", limit)
    emission, crops, ids, probs = TopPairs(), [], [], []
    for image in range(len(regions.files)):
        photo, boxes = regions.photo(image), regions.boxes_xyxy[regions.rows(image)]
        found = recognizer.memory.search(
            recognizer.encoder.encode_images(recognizer.cropper.crop(photo, boxes)), emission.depth
        )
        ids.append(found.category_ids)
        probs.append(found.probs)
        crops.append(recognizer.ranker_cropper.crop(photo, boxes))
    return Demo(
        recognizer.prompt_names,
        regions,
        labels_of(regions, annotations["categories"]),
        torch.cat(crops),
        Shortlist(torch.cat(ids), torch.cat(probs)),
        Scorer(recognizer.memory, emission, regions, annotations),
    )


def print_tables(limit: int | None, cache: Path) -> dict[str, dict[str, Any]]:
    """All ways to ask, and k = 3 ... 7, on the demo's test split."""
    demo = load_demo("test", limit)
    shortlist, truth = demo.shortlist, demo.truth
    rows: dict[str, tuple[Any, int]] = {
        "generate, paper's prompt": (Generate(prompt="paper", prompts=PROMPTS), 5),
        "generate, structured in-context": (Generate(prompt="paper_in_context", prompts=PROMPTS), 5),
        "likelihood, choose": (Likelihood(prompt="choose", prompts=PROMPTS), 5),
        "likelihood, name": (Likelihood(prompt="name", prompts=PROMPTS), 5),
        "likelihood, name, PMI": (Likelihood(prompt="name", score="pmi", prompts=PROMPTS), 5),
        "letter, one order": (Letter(num_shifts=1, prompts=PROMPTS), 5),
        "letter, all cyclic shifts": (Letter(prompts=PROMPTS), 5),
        "yesno": (YesNo(prompts=PROMPTS), 5),
        **{f"likelihood, choose, k = {k}": (Likelihood(prompt="choose", prompts=PROMPTS), k) for k in (3, 4, 6, 7)},
    }
    retrieval = demo.summary(shortlist.probs)
    top1 = (shortlist.category_ids[:, 0] == truth).double().mean().item()
    table: dict[str, dict[str, Any]] = {
        "retrieval only": {"top1": top1, "AP": retrieval["AP"], "APr": retrieval["APr"]}
    }
    print(
        f"{len(truth)} regions\n{'retrieval only':34s} rank-1 {top1:.4f} AP {100 * retrieval['AP']:.2f}",
        flush=True,
    )
    for name, (way, k) in rows.items():
        ranker = make_ranker(ROOT / "demo/weights/ranker", way, cache=cache)
        ranking = ranker.rank(demo.crops, shortlist.head(k), demo.names)
        fused = LogLikFusion()(shortlist, ranking)
        summary = demo.summary(fused)
        best = shortlist.category_ids.gather(1, ranking.order[:, :1]).flatten()
        report = ranker.report()
        table[name] = {
            "k": k,
            "rank1": (best == truth).double().mean().item(),
            "top1_fused": (shortlist.category_ids.gather(1, fused.argmax(1, keepdim=True))[:, 0] == truth)
            .double()
            .mean()
            .item(),
            "AP": summary["AP"],
            "APr": summary["APr"],
            "crops_per_second": report["regions"] / max(report["seconds"], 1e-9) if not report["cached"] else None,
            **{key: report[key] for key in ("ok", "partial", "fallback", "asked", "cached")},
        }
        print(f"{name:34s} {json.dumps(table[name], default=float)}", flush=True)
    return table


OPEN_SET_PRECISION, HIDDEN_SHARE = 0.95, 0.5
# Temperature and weight of each way, fitted with all names on the calibration split (docs/rankers.md).
OPEN_SET_WAYS: dict[str, tuple[Any, float, float]] = {
    "likelihood, choose": (Likelihood(prompt="choose", prompts=PROMPTS), 1.25, 0.95),
    "likelihood, name": (Likelihood(prompt="name", prompts=PROMPTS), 1.0, 0.95),
    "yesno": (YesNo(prompts=PROMPTS), 1.77, 0.87),
    "letter, one order": (Letter(num_shifts=1, prompts=PROMPTS), 0.95, 0.95),
}


SPREAD_WAYS = ("likelihood, choose", "yesno")  # measured over several draws of the hidden classes


class OpenWorld:
    """The demo's annotated regions of two splits, to be recognised with half of their classes hidden."""

    def __init__(self, cache: Path | None) -> None:
        self.cache = cache
        self.files = {split: ROOT / f"data/demo/annotations/lvis_demo_{split}.json" for split in ("calib", "test")}
        self.regions, self.truth = {}, {}
        for split, file in self.files.items():
            annotations = load_annotation_file(file)
            self.names = [category["name"] for category in annotations["categories"]]
            self.regions[split] = find_regions(annotations, ROOT / "data/demo", None)
            self.truth[split] = labels_of(self.regions[split], annotations["categories"])

    def measure(
        self, way: Any, fusion: Any, kept: list[int], background: list[str] | None = None
    ) -> tuple[dict[str, Any], OpenSet]:
        """Threshold from the calibration split, everything else on the test split; and the regions of that."""
        shipped = RegionRecognizer.from_config(ROOT / "configs/demo/rar_demo_likelihood.py", str(self.files["test"]))
        recognizer = RegionRecognizer(
            cropper=shipped.cropper,
            encoder=shipped.encoder,
            memory=shipped.memory_source,
            category_names=self.names,
            ranker=make_ranker(ROOT / "demo/weights/ranker", way, cache=self.cache, batch_size=BATCH),
            fusion=fusion,
        )
        recognizer.background = background
        found = {
            split: recognise_open_set(recognizer, self.regions[split], self.truth[split], kept) for split in self.files
        }
        threshold = threshold_for(OPEN_SET_PRECISION, found["calib"].scores, found["calib"].right)[0]
        return {"min_score": threshold, **measure(found["test"], threshold)}, found["test"]


def print_open_set(figure: Path, cache: Path | None) -> dict[str, dict[str, Any]]:
    """Half of the demo's classes hidden: a threshold for 95 % right names from the calibration split, on the test one.

    Each way with its evidence (`NoneOfThese`) and without, with no background names and with half of the hidden ones;
    the other half of the hidden classes is then unknown to names and background alike.
    """
    world = OpenWorld(cache)
    kept = hide_categories(len(world.names), HIDDEN_SHARE, 6)
    hidden = [name for label, name in enumerate(world.names) if label not in set(kept)]
    table: dict[str, dict[str, Any]] = {}
    curves = {}
    for told, background in (("", None), (", background", hidden[::2])):
        for name, (way, temperature, alpha) in OPEN_SET_WAYS.items():
            plain = LogLikFusion(alpha=alpha, temperature=temperature)
            for how, fusion in (("", NoneOfThese(plain)), (", without evidence", plain)):
                row = f"{name}{told}{how}"
                table[row], curves[row] = world.measure(way, fusion, kept, background)
                print(f"{row:48s} {json.dumps(table[row])}", flush=True)
    shown = ("likelihood, choose, without evidence", "letter, one order", "yesno", "likelihood, choose")
    retrieval = curves["likelihood, choose"]
    alone = replace(retrieval, scores=retrieval.retrieval, right=retrieval.retrieval_right)
    draw_risk({"retrieval": alone, **{row: curves[row] for row in shown}}, figure, OPEN_SET_PRECISION)
    return table


def print_open_set_spread(draws: int, cache: Path | None) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over draws of the hidden half, which the threshold is fitted on anew each time."""
    world, table = OpenWorld(cache), {}
    for name in SPREAD_WAYS:
        way, temperature, alpha = OPEN_SET_WAYS[name]
        fusion = NoneOfThese(LogLikFusion(alpha=alpha, temperature=temperature))
        rows = [
            world.measure(way, fusion, hide_categories(len(world.names), HIDDEN_SHARE, 6, seed))[0]
            for seed in range(draws)
        ]
        columns = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in rows[0]}
        table[name] = {key: [column.mean().item(), column.std().item()] for key, column in columns.items()}
        print(f"{name:24s} {json.dumps(table[name])}", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--table", action="store_true", help="the demo tables instead of the speeds")
    parser.add_argument("--none-of-these", type=Path, metavar="PNG", help="the table and figure of unknown regions")
    parser.add_argument("--draws", type=int, help="of hidden classes: the spread of some rows of --none-of-these alone")
    parser.add_argument("--crops", type=int, default=64, help="crops per measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median counts")
    parser.add_argument("--num-images", type=int, help="--table: only the first so many images")
    parser.add_argument("--cache", type=Path, help="--table, --none-of-these: keep answers in this file")
    parser.add_argument("--only", choices=["server", "client", "demo", "random", "memory"], help="one part alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        result: dict[str, Any] = print_tables(args.num_images, args.cache)
    elif args.draws:
        result = print_open_set_spread(args.draws, args.cache)
    elif args.none_of_these:
        result = print_open_set(args.none_of_these, args.cache)
    else:
        result = {}
        parts = [args.only] if args.only else ["server", "client", "demo", "random", "memory"]
        if "server" in parts:
            result |= measure_server(side=224)
        if "client" in parts:
            result |= measure_client()
        speeds = {}
        demo = ROOT / "demo/weights/ranker"
        if {"demo", "random", "memory"} & set(parts):
            world = load_demo("calib", 20)
            names, crops = world.names, world.crops[: args.crops]
            shortlist = world.shortlist[: args.crops].head(5)
        if "memory" in parts:  # first: a peak is that of the whole process so far
            result |= measure_memory(demo, names)
        if "demo" in parts:
            result["k50_ratio"] = measure_k50(demo, world, args.rounds)
            speeds["demo"] = measure_model(demo, crops, shortlist, names, args.rounds, base=16)
        if "random" in parts:
            with tempfile.TemporaryDirectory() as folder:
                large = make_random_llava(Path(folder))
                few = min(16, len(crops))
                rounds = 2 * args.rounds + 1  # of three, the median is off by 5 % now and then
                result["prefill_overhead"] = measure_prefill(large, crops[:few], shortlist[:few], names, rounds)
                speeds["random_100m"] = measure_model(large, crops[:few], shortlist[:few], names, 1, base=1)
        for way in ("likelihood", "letter", "letter_debiased", "yesno", "generate_batched"):
            ratios = {model: seconds["baseline"] / seconds[way] for model, seconds in speeds.items()}
            result |= {f"{way}_speedup_{model}": ratio for model, ratio in ratios.items()}
            if ratios:
                result[f"{way}_speedup"] = min(ratios.values())
        result["seconds_per_crop"] = speeds
        print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
