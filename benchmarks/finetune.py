"""Fine-tuning: data, the training step against a loop written by hand, packed texts, memory of seven billion weights.

    python benchmarks/finetune.py [--json FILE] [--threads 2] [--quick]

- `data_s`, `data_mib`: 30,000 questions of 3,334 stored vectors (FGVC-Aircraft's train part), worded and written as
  records and LLaVA's JSON; the growth of the process's peak memory. Streaming: it does not grow with the questions.
- `step_overhead`: a step of `rar-mmdet finetune train` on the fine-tuning demo's base, 32 questions of five names, over
  one of a loop by hand in the style of demo/train_ranker.py on the same questions (one length, so no padding; ids made
  by the tokenizer alone; the answer's logits alone). Both with the same LoRA and AdamW, in turns; medians.
- `packed_difference`: loss of questions whose texts share a row (letters in all orders, yes or no to each) minus that
  of a row for each text; the greatest of both. `packed_speedup`: time of the latter over that of the former.
- `memory`: GPU memory of LoRA on published models, computed (rar_mmdet/finetune/footprint.py), and the most rows of a
  batch for each size of card. benchmarks/gpu.py measures a step of LLaVA-1.5-7B with random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rar_mmdet.components import build_component, read_config
from rar_mmdet.finetune.batches import BatchMaker, answer_loss
from rar_mmdet.finetune.examples import our_examples
from rar_mmdet.finetune.exports import ExportWriter, turns_of
from rar_mmdet.finetune.footprint import SEVEN_BILLION, most_rows, training_bytes
from rar_mmdet.finetune.rows import TaughtQuestion
from rar_mmdet.finetune.settings import LoraSettings, Schedule
from rar_mmdet.finetune.training import trainer_class, training_arguments, with_lora
from rar_mmdet.rankers.asks import Generate, Letter, YesNo
from rar_mmdet.rankers.questions import Ask, Question

ROOT = Path(__file__).resolve().parents[1]
PHOTOS, CLASSES, QUESTIONS = 3_334, 100, 30_000
ROWS, STEPS, TURNS = 32, 6, 3
TEXT_TOKENS, ANSWER_TOKENS, RANK = 180, 50, 64  # of the paper's prompt with five names of aircraft, about
CARDS_GIB = (16, 24, 40, 80)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_data(questions: int) -> dict[str, float]:
    """Seconds and growth of the peak."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(PHOTOS) % CLASSES
    centres = functional.normalize(torch.randn(CLASSES, 512, generator=generator), dim=1)
    noise = torch.randn(PHOTOS, 512, generator=generator)
    vectors = functional.normalize(centres[labels] + 0.05 * noise, dim=1)
    names, ask = [f"aircraft variant {number}" for number in range(CLASSES)], Generate()
    before, started = peak_mib(), time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        ExportWriter("llava", Path(folder)) as export,
        open(Path(folder) / "records.jsonl", "w") as records,
    ):
        for number, example in enumerate(our_examples(vectors, labels, centres.T.contiguous()), 1):
            records.write(json.dumps([example.photo, example.labels, example.truth, example.target]) + "\n")
            for turn in turns_of(example, number, "a.jpg", names, ask):
                export.add(turn)
            if number == questions:
                break
    return {"data_s": time.perf_counter() - started, "data_mib": peak_mib() - before}


def make_ranker() -> Any:
    return build_component(read_config(ROOT / "configs" / "finetune" / "demo.py")["ranker"], "ranker")


def make_questions(ask: Ask, count: int, side: int, seed: int = 0) -> list[TaughtQuestion]:
    """Noise, and five names of three words each: all questions have one length."""
    rng = np.random.default_rng(seed)
    words = [("plain", "striped"), ("red", "blue", "green"), ("star", "heart", "cross", "drop")]
    names = [f"{a} {b} {c}" for a in words[0] for b in words[1] for c in words[2]]
    found = []
    for _ in range(count):
        crop = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
        question = Question(crop, tuple(names[i] for i in rng.choice(len(names), 5, replace=False)))
        target = rng.permutation(5).tolist()
        found.append(TaughtQuestion(question, tuple(ask.texts(question)), tuple(ask.target(question, target))))
    return found


class HandWritten:
    """The loop of demo/train_ranker.py: the tokenizer on whole texts, tower and language model called by hand."""

    def __init__(self, questions: Sequence[TaughtQuestion]) -> None:
        loaded = make_ranker().loaded
        self.tokenizer, self.talk, self.base = loaded.processor.tokenizer, loaded.dialogue, loaded.model
        self.model = with_lora(self.base, LoraSettings(rank=16, alpha=32, dropout=0.0), "base", seed=0).train()
        self.learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4)
        self.questions, self.image_tokens = questions, loaded.processor.image_token

    def step(self) -> None:
        model = self.base
        prompts = [self.talk.text(one.texts[0]) for one in self.questions]
        prompts = [prompt.replace(self.image_tokens, self.image_tokens * 16) for prompt in prompts]
        full = [f"{prompt} {one.answers[0]}</s>" for prompt, one in zip(prompts, self.questions, strict=True)]
        ids = torch.tensor(self.tokenizer(full, add_special_tokens=True)["input_ids"])
        begins = len(self.tokenizer(prompts[0], add_special_tokens=True)["input_ids"])
        pictures = torch.stack([one.question.crop for one in self.questions]).float() / 127.5 - 1
        with torch.no_grad():
            tokens = model.model.vision_tower(pictures).last_hidden_state
        embeds = model.get_input_embeddings()(ids)
        image = model.model.multi_modal_projector(tokens)
        embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], image)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, begins - 1 : -1])
        loss = functional.cross_entropy(logits.transpose(1, 2), ids[:, begins:])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()


def trainer_steps(questions: Sequence[TaughtQuestion], steps: int) -> list[float]:
    """Seconds between the ends of steps of a training."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    loaded = make_ranker().loaded
    model = with_lora(loaded.model, LoraSettings(rank=16, alpha=32, dropout=0.0), "base", seed=0)
    schedule = Schedule(steps=steps + 1, batch_size=len(questions), workers=0, save_every=10_000, learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        settings = training_arguments(schedule, Path(folder), "cpu")
        settings.disable_tqdm = True
        data: Any = list(questions)
        trainer = trainer_class()(
            model=model, args=settings, train_dataset=data, data_collator=BatchMaker(loaded), callbacks=[Clock()]
        )
        trainer.train()
    return [later - sooner for sooner, later in pairwise(ends)]


def measure_step(rows: int, steps: int, turns: int) -> dict[str, float]:
    """Both in turns."""
    questions = make_questions(Generate(prompt="paper"), rows, 64)
    by_hand, by_trainer = [], []
    loop = HandWritten(questions)
    loop.step()
    for _ in range(turns):
        by_hand += [timed(loop.step) for _ in range(steps)]
        by_trainer += trainer_steps(questions, steps)
    hand, trained = statistics.median(by_hand), statistics.median(by_trainer)
    return {"step_s": trained, "by_hand_s": hand, "step_overhead": trained / hand}


def measure_packing(rows: int) -> dict[str, float]:
    """Difference of the losses, ratio of the times."""
    loaded = make_ranker().loaded
    differences, ratios = [], []
    for ask in (Letter(), YesNo()):
        questions = make_questions(ask, rows, 64)
        losses: list[Tensor] = []
        seconds = []
        for is_packed in (True, False):
            batch = loaded.placed(BatchMaker(loaded, is_packed)(questions))

            def loss(batch: dict[str, Tensor] = batch, losses: list[Tensor] = losses) -> None:
                with torch.inference_mode():
                    losses.append(answer_loss(loaded.model, batch))

            loss()
            losses.pop()
            seconds.append(min(timed(loss) for _ in range(3)))
        differences.append(abs(losses[0].item() - losses[-1].item()))
        ratios.append(seconds[1] / seconds[0])
    return {"packed_difference": max(differences), "packed_speedup": statistics.median(ratios)}


def timed(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def computed_memory() -> dict[str, Any]:
    """GB of a step with one row, and the most rows of a batch by size of card."""
    sizes = {"rank": RANK, "text_tokens": TEXT_TOKENS, "answer_tokens": ANSWER_TOKENS}
    return {
        model.name: {
            "one_row_gb": round(training_bytes(model, rows=1, **sizes) / 1e9, 1),
            "most_rows": {f"{card} GiB": most_rows(model, card * 2**30, **sizes) for card in CARDS_GIB},
        }
        for model in SEVEN_BILLION
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = measure_data(300 if args.quick else QUESTIONS)
    figures |= measure_packing(2 if args.quick else 8)
    figures |= measure_step(4, 1, 1) if args.quick else measure_step(ROWS, STEPS, TURNS)
    figures["memory"] = computed_memory()
    for name, value in figures.items():
        print(f"{name:<20} {value if isinstance(value, (dict, list)) else format(value, '.4g')}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if not args.quick and figures["step_overhead"] > 1.3:
        sys.exit("step_overhead is above 1.3")


if __name__ == "__main__":
    main()
