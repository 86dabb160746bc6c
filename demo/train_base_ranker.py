"""Train the base of the fine-tuning demo: a LLaVA that sees and names, but has never been asked to rank.

It is what a published multimodal LLM is to RAR's section 3.3. The tower is the demo ranker's own, frozen; projector and
language model learn from scratch, as in the first steps of ``train_ranker.py``, to name the object (several wordings,
no list in sight) and to repeat a list of names (whatever the picture). Choosing from a list, sorting one, letters, and
yes or no it has never seen. Rare classes are never the truth.

    python demo/train_base_ranker.py [--device cuda]   # an hour on two cores, minutes on a GPU; killed, it goes on

Needs demo/weights/ranker (demo/train_ranker.py). Writes a folder for ``AutoModelForImageTextToText``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_vision  # noqa: F401 - makes the tower known to transformers
import torch
from ranker_data import chat, render_any, render_known
from ranker_tower import DOMAIN, VISUAL_TOKENS, cosine_with_warmup, make_optimizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from train_ranker import build_llava, cached, embed, save, visual_tokens
from training import load_checkpoint, rendered_pool, save_checkpoint, write_json
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from world import CLASS_NAMES, NUM_CLASSES

HERE = Path(__file__).resolve().parent
NAME_WORDINGS = (
    "What is the object in the image?",
    "What is in the image?",
    "Name the object in the image.",
    "What do you see?",
    "Describe the object.",
)
REPEAT_WORDINGS = ("Repeat the list: {names}", "Here are some categories: {names}. Repeat them.")
LEARNING_RATE = 2e-3  # the demo ranker's
SHARE_OF_NAMES = 0.7  # of the steps; the rest repeats lists


@dataclass(frozen=True)
class Pool:
    """Tokens of the frozen tower (B, 16, C), or of both mirrorings (2, B, 16, C), and true classes (B,)."""

    features: Tensor
    classes: Tensor


def draw(rng: np.random.Generator, truths: list[int]) -> tuple[list[str], list[str]]:
    """Prompts and answers of one batch, all of one kind and length: no padding."""
    if rng.random() < SHARE_OF_NAMES:
        wording = str(rng.choice(NAME_WORDINGS))
        return [wording] * len(truths), [CLASS_NAMES[truth] for truth in truths]
    wording, length = str(rng.choice(REPEAT_WORDINGS)), int(rng.integers(2, 9))
    lists = [str([CLASS_NAMES[c] for c in rng.choice(NUM_CLASSES, length, replace=False)]) for _ in truths]
    return [wording.replace("{names}", names) for names in lists], lists


def answer_logits(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    answers: list[str],
    features: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits (B, L, V) at the answers' tokens, and those tokens (B, L), end of turn included."""
    shown = [chat(prompt).replace("<image>", "<image>" * VISUAL_TOKENS) for prompt in prompts]
    full = tokenizer([f"{a} {b}</s>" for a, b in zip(shown, answers, strict=True)])["input_ids"]
    ids, features = torch.tensor(full).to(model.device), features.to(model.device)
    begins = len(tokenizer(shown[0])["input_ids"])
    hidden = model.model.language_model(inputs_embeds=embed(model, ids, features), use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, begins - 1 : -1]), ids[:, begins:]


@torch.inference_mode()
def measure(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, test: Pool) -> dict[str, float]:
    """Share of right names, teacher-forced, for two of the wordings; of right tokens of repeated lists."""
    model.eval()
    rng, found = np.random.default_rng([DOMAIN, 31]), {}
    truths, features = test.classes.tolist(), test.features
    for kind, wording in (("name", NAME_WORDINGS[0]), ("name, last wording", NAME_WORDINGS[-1])):
        logits, ids = answer_logits(
            model, tokenizer, [wording] * len(truths), [CLASS_NAMES[truth] for truth in truths], features
        )
        found[kind] = round((logits.argmax(-1) == ids).all(1).float().mean().item(), 4)
    lists = [str([CLASS_NAMES[c] for c in rng.choice(NUM_CLASSES, 5, replace=False)]) for _ in truths]
    prompts = [REPEAT_WORDINGS[0].replace("{names}", names) for names in lists]
    logits, ids = answer_logits(model, tokenizer, prompts, lists, features)
    found["repeat, tokens"] = round((logits.argmax(-1) == ids).float().mean().item(), 4)
    model.train()
    return found


def train(
    args: argparse.Namespace, model: LlavaForConditionalGeneration, tokenizer: Any, data: Pool, test: Pool
) -> Any:
    """Projector and language model; resumes from its checkpoint and returns the measured curve."""
    model.to(args.device)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(learned, LEARNING_RATE)
    start, curve = 0, []
    if (state := load_checkpoint(args.work / "base.pt")) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], state["curve"]
    model.train()
    progress = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="train base")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_with_warmup(step, args.steps, 60)
        rng = np.random.default_rng([DOMAIN, args.seed, 30, step])
        rows = rng.choice(len(data.classes), 96, replace=False)
        mirrored = torch.from_numpy(rng.integers(2, size=len(rows)))
        prompts, answers = draw(rng, data.classes[rows].tolist())
        features = data.features[mirrored, torch.from_numpy(rows)]
        logits, ids = answer_logits(model, tokenizer, prompts, answers, features)
        loss = functional.cross_entropy(logits.transpose(1, 2), ids)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            curve.append({"step": step + 1, **measure(model, tokenizer, test)})
            progress.write(f"base {curve[-1]}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "curve": curve}
            save_checkpoint(args.work / "base.pt", state)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "weights" / "base_ranker", help="folder of the model")
    parser.add_argument("--ranker", type=Path, default=HERE / "weights" / "ranker", help="whose tower is taken")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/demo_base_ranker"), help="crops and states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--renders", type=int, default=24000)
    parser.add_argument("--test-renders", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=200, help="steps between measured, resumable states")
    parser.add_argument("--threads", type=int, default=2, help="also processes that draw")
    parser.add_argument("--device", default="cpu", help="of the training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.ranker, padding_side="left")
    tower = AutoModelForImageTextToText.from_pretrained(args.ranker, dtype=torch.float32).model.vision_tower.eval()
    parts = []
    pools = (("train", args.renders, 5, render_known), ("test", args.test_renders, 6, render_any))
    for name, count, word, render in pools:
        pictures, labels = rendered_pool(args.work / name, count, (DOMAIN, args.seed, word), render, args.threads)
        both = cached(
            args.work / f"features-{name}-{count}.pt",
            lambda pictures=pictures: torch.stack([visual_tokens(tower, p) for p in (pictures, pictures.flip(-1))]),
        )
        parts.append(Pool(both if name == "train" else both[0], labels[:, 0].long()))
    torch.manual_seed(args.seed)
    model = build_llava(tower, tokenizer)
    curve = train(args, model, tokenizer, *parts)
    save(args.out, model.cpu().eval(), tokenizer)
    write_json(args.out / "measured.json", {"parameters": sum(p.numel() for p in model.parameters()), "base": curve})
    print(curve[-1])


if __name__ == "__main__":
    main()
