"""Train the demo's ranker: a tiny LLaVA (convolutional tower, 16 visual tokens, 4-layer Llama) on rendered crops.

It stands in for a 7B multimodal LLM. Three stages: the tower learns colour, pattern and shape as a classifier; it
is frozen and its tokens are cached; projector and language model learn to name, choose, sort, answer by letter and
answer yes or no (demo/prompts.json) about candidate lists, half of them the retriever's own. Rare classes are never
the truth in any stage.

    python demo/train_ranker.py                    # about two hours on two CPU cores; kill and run again: it goes on

Needs demo/weights/clip (demo/train_clip.py). Writes a folder for ``AutoModelForImageTextToText`` and ``AutoProcessor``.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from ranker_data import (
    CHAT_TEMPLATE,
    SIZE,
    Example,
    build_tokenizer,
    chat,
    leak_free_list,
    make_example,
    render_any,
    render_known,
    retrieved_list,
    unrelated_list,
)
from ranker_phases import Phase, locate, make_phases
from ranker_tower import (
    DOMAIN,
    VISUAL_TOKENS,
    AttributeHeads,
    class_log_probs,
    cosine_with_warmup,
    make_optimizer,
    normalise,
    train_tower,
)
from tiny_vision import TinyVisionModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from train_clip import normalise as normalise_for_clip
from training import load_checkpoint, rendered_pool, save_checkpoint, write_json
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from world import CLASS_NAMES, rare_classes

HERE = Path(__file__).resolve().parent
QUESTIONS = ("name", "choose", "sort", "paper", "paper_in_context", "letter", "yesno")


# ---- stage 2: what does not change while the language model learns -------------------------------------------------


@dataclass(frozen=True)
class Data:
    """What stage 3 needs of a pool of crops.

    Visual tokens (B, 16, C), true classes (B,), retrieved classes (B, 8), the tower's log-probabilities (B, 600).
    """

    features: Tensor
    classes: Tensor
    lists: Tensor
    beliefs: Tensor


@torch.inference_mode()
def visual_tokens(tower: nn.Module, pictures: Tensor) -> Tensor:
    """Tokens of the frozen tower, (B, 16, C) float16."""
    return torch.cat(
        [tower(normalise(part)).last_hidden_state.half() for part in tqdm(pictures.split(250), desc="tower features")]
    )


@torch.inference_mode()
def retrieved_classes(folder: Path, pictures: Tensor, depth: int = 8) -> Tensor:
    """The demo retriever's best classes for every crop, best first, (B, depth) int64."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    names = functional.normalize(model.encode_text(tokenizer([f"a photo of a {name}" for name in CLASS_NAMES])), dim=-1)
    parts = [
        (model.encode_image(normalise_for_clip(part)) @ names.T).topk(depth).indices
        for part in tqdm(pictures.split(250), desc="retrieve")
    ]
    return torch.cat(parts)


def cached(path: Path, make: Any) -> Tensor:
    """A tensor that a killed run need not compute again."""
    if (state := load_checkpoint(path)) is None:
        state = {"value": make()}
        save_checkpoint(path, state)
    return state["value"]


# ---- stage 3: projector and language model -------------------------------------------------------------------------


def build_llava(tower: TinyVisionModel, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA around a trained tower."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    return model


def embed(model: LlavaForConditionalGeneration, ids: Tensor, features: Tensor) -> Tensor:
    """Input embeddings with cached visual tokens in the image places, (B, L, 128)."""
    inputs = model.get_input_embeddings()(ids)
    image = model.model.multi_modal_projector(features.float())
    return inputs.masked_scatter((ids == model.config.image_token_id)[..., None], image)


def draw_batch(
    rng: np.random.Generator, phase: Phase, kind: str, truths: np.ndarray, retrieved: np.ndarray
) -> list[Example]:
    """Examples of one kind with one list length, so that all have the same number of tokens."""
    low, high = (2, 9) if kind != "letter" else (3 if phase.names_first else 2, 8)
    length = 5 if rng.random() < phase.five else int(rng.integers(low, high))
    examples = []
    for truth, best in zip(truths.tolist(), retrieved.tolist(), strict=True):
        draw = rng.random()
        if draw < phase.retrieved:
            candidates = retrieved_list(rng, truth, best, length)
        elif draw < phase.retrieved + phase.leak_free:
            candidates = leak_free_list(rng, truth, length)
        else:
            candidates = unrelated_list(rng, truth, length)
        examples.append(make_example(rng, kind, truth, candidates))
    return examples


def tokenise(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> tuple[Tensor, int, int]:
    """Token ids (B, L) of questions with answers, where the answers begin, and how many of their tokens decide."""
    prompts = [chat(example.prompt).replace("<image>", "<image>" * VISUAL_TOKENS) for example in examples]
    full = [f"{prompt}{example.answer}</s>" for prompt, example in zip(prompts, examples, strict=True)]
    ids = torch.tensor(tokenizer(full)["input_ids"])  # one kind and one length: no padding
    decisive = tokenizer(examples[0].emphasis, add_special_tokens=False)["input_ids"]
    return ids, len(tokenizer(prompts[0])["input_ids"]), len(decisive)


def letter_targets(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], beliefs: Tensor) -> Tensor:
    """(B, V) the tower's posterior over the options, on their letters.

    What the crop shows is often not the whole truth (small, blurred), so a hard label is a noisy one. Temperature 1.5:
    on fresh crops 1.1 fits the classes the tower has seen best, 1.6 all 600.
    """
    options = torch.tensor([example.options for example in examples])
    letters = [f" {letter}" for letter in string.ascii_uppercase[: options.shape[1]]]
    posterior = (beliefs.float().gather(1, options) / 1.5).softmax(1)
    ids = torch.tensor(tokenizer(letters, add_special_tokens=False)["input_ids"]).flatten().expand_as(options)
    return torch.zeros(len(options), len(tokenizer)).scatter_(1, ids, posterior)


def batch_loss(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    features: Tensor,
    beliefs: Tensor,
) -> Tensor:
    """Cross-entropy of the answers; tokens that decide the order weigh three times, letters have soft targets."""
    ids, begins, emphasised = tokenise(tokenizer, examples)
    hidden = model.model.language_model(inputs_embeds=embed(model, ids, features), use_cache=False).last_hidden_state
    answers = ids[:, begins:]
    logits = model.lm_head(hidden[:, begins - 1 : -1])
    losses = functional.cross_entropy(logits.transpose(1, 2), answers, reduction="none")
    if examples[0].options:  # letters; a quarter stays with the truth
        soft = letter_targets(tokenizer, examples, beliefs)
        losses[:, 0] = (losses[:, 0] + 3 * functional.cross_entropy(logits[:, 0], soft, reduction="none")) / 4
    weights = torch.ones(answers.shape[1])
    weights[:emphasised] = 3.0
    return (losses * weights).sum() / (weights.sum() * len(ids))


@torch.inference_mode()
def rank_by_name(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, features: Tensor, candidates: Tensor
) -> Tensor:
    """Log-likelihood of every candidate's name after 'What is the object in the image?', (B, K)."""
    model.eval()
    prompt = chat("What is the object in the image?").replace("<image>", "<image>" * VISUAL_TOKENS)
    begins = len(tokenizer(prompt)["input_ids"])
    sequences = torch.tensor(tokenizer([f"{prompt} {name}</s>" for name in CLASS_NAMES])["input_ids"])
    scores = []
    for feature, rows in zip(features.split(100), candidates.split(100), strict=True):
        ids = sequences[rows.flatten()]
        inputs = embed(model, ids, feature.repeat_interleave(rows.shape[1], 0))
        hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logs = model.lm_head(hidden[:, begins - 1 : -1]).log_softmax(-1)
        scores.append(logs.gather(2, ids[:, begins:, None])[..., 0].sum(1).view(rows.shape))
    model.train()
    return torch.cat(scores)


def measure(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, data: Data) -> dict[str, Any]:
    """Top-1 of the retriever and after ranking its five best by name; a truth it missed is not put in."""
    best, classes = data.lists[:, :5], data.classes
    ranked = best.gather(1, rank_by_name(model, tokenizer, data.features, best).argmax(1, keepdim=True))[:, 0]
    listed = (best == classes[:, None]).any(1)
    rare = torch.isin(classes, torch.from_numpy(rare_classes()))

    def share(hits: Tensor) -> float:
        return round(hits.float().mean().item(), 4)

    return {
        "n": len(classes),
        "retriever": share(best[:, 0] == classes),
        "recall@5": share(listed),
        "ranked": share(ranked == classes),
        "rank-1 when listed": share((ranked == classes)[listed]),
        "rare: retriever": share((best[:, 0] == classes)[rare]),
        "rare: ranked": share((ranked == classes)[rare]),
    }


@torch.inference_mode()
def measure_questions(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, data: Data) -> Any:
    """Share of right first answers per question, greedy, on shuffled lists of the retriever with the truth put in."""
    model.eval()
    rights, batches = (
        {},
        list(zip(data.features.split(200), data.classes.split(200), data.lists.split(200), strict=True)),
    )
    for kind in QUESTIONS:
        rng, right = np.random.default_rng([DOMAIN, 13]), []
        for features, classes, lists in batches[:5]:
            pairs = zip(classes.tolist(), lists.tolist(), strict=True)
            examples = [make_example(rng, kind, truth, retrieved_list(rng, truth, best, 5)) for truth, best in pairs]
            ids, begins, emphasised = tokenise(tokenizer, examples)
            decisive = emphasised - kind.startswith(("sort", "paper"))  # the mark after the first name may differ
            hidden = model.model.language_model(inputs_embeds=embed(model, ids, features), use_cache=False)
            guess = model.lm_head(hidden.last_hidden_state[:, begins - 1 : begins - 1 + decisive]).argmax(-1)
            right.append((guess == ids[:, begins : begins + decisive]).all(1))
        rights[kind] = round(torch.cat(right).float().mean().item(), 4)
    model.train()
    return rights


def training_step(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    phase: Phase,
    step: int,
    data: Data,
    rng: np.random.Generator,
) -> Tensor:
    """Loss of one batch; ``data.features`` and ``data.beliefs`` hold both mirrorings, (2, B, ...)."""
    names_only = step < phase.names_first * phase.steps
    kind = "name" if names_only else str(rng.choice(list(phase.questions), p=list(phase.questions.values())))
    rows = rng.choice(phase.crops, 128 if kind in phase.large_batch else 64, replace=False)
    mirrored = torch.from_numpy(rng.integers(2, size=len(rows)))
    examples = draw_batch(rng, phase, kind, data.classes.numpy()[rows], data.lists.numpy()[rows])
    drawn = mirrored, torch.from_numpy(rows)
    return batch_loss(model, tokenizer, examples, data.features[drawn], data.beliefs[drawn])


def train_language(
    args: argparse.Namespace, model: LlavaForConditionalGeneration, tokenizer: Any, data: Data, test: Data
) -> list[dict[str, Any]]:
    """Stage 3, all phases; resumes from its checkpoint and returns the measured curve."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(learned, 2e-3)
    phases = make_phases(args)
    start, total, curve = 0, sum(phase.steps for phase in phases), []
    if (state := load_checkpoint(args.work / "language.pt")) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], state["curve"]
    some = Data(*(part[:600] for part in (test.features, test.classes, test.lists, test.beliefs)))
    progress = tqdm(range(start, total), initial=start, total=total, desc="train language model")
    for step in progress:
        phase, inner = locate(phases, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr * cosine_with_warmup(inner, phase.steps, 60)
        loss = training_step(model, tokenizer, phase, inner, data, np.random.default_rng([DOMAIN, args.seed, 12, step]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % args.save_every == 0 or inner + 1 == phase.steps:
            right = measure_questions(model, tokenizer, some)
            curve.append({"step": step + 1, **measure(model, tokenizer, some), "right first answers": right})
            progress.write(f"ranker {curve[-1]}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "curve": curve}
            save_checkpoint(args.work / "language.pt", state)
    right = measure_questions(model, tokenizer, test)
    return [*curve, {"step": total, **measure(model, tokenizer, test), "right first answers": right}]


def prepare(
    args: argparse.Namespace, tower: TinyVisionModel, heads: AttributeHeads, test: tuple[Tensor, Tensor]
) -> tuple[Data, Data]:
    """Stage 2: training data (features and beliefs of both mirrorings, (2, B, ...)) and test data for stage 3."""
    pictures, labels = rendered_pool(
        args.work / "language", args.language_renders, (DOMAIN, args.seed, 2), render_known, args.threads
    )
    features = cached(
        args.work / f"features-{args.language_renders}.pt",
        lambda: torch.stack([visual_tokens(tower, pictures), visual_tokens(tower, pictures.flip(-1))]),
    )
    lists = cached(args.work / f"lists-{args.language_renders}.pt", lambda: retrieved_classes(args.clip, pictures))
    beliefs = torch.stack([class_log_probs(heads, side) for side in features])
    tokens = visual_tokens(tower, test[0])
    seen = Data(tokens, test[1][:, 0].long(), retrieved_classes(args.clip, test[0]), class_log_probs(heads, tokens))
    return Data(features, labels[:, 0].long(), lists, beliefs), seen


def save(folder: Path, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write weights (float16), configuration, tokenizer and processor the way ``from_pretrained`` reads them."""
    pictures = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_resize=True,
    )
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=SIZE // 4,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    model.float().config.dtype = "float32"  # what to compute in by default: half precision crawls on a CPU
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "weights" / "ranker", help="folder of the finished model")
    parser.add_argument(
        "--clip", type=Path, default=HERE / "weights" / "clip", help="the retriever whose lists are ranked"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work_dirs/demo_ranker"), help="rendered crops and the states to resume from"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=3200)
    parser.add_argument("--language-steps", type=int, default=2400)
    parser.add_argument("--letter-steps", type=int, default=2000, help="further steps, mostly answers by letter")
    parser.add_argument(
        "--short-answer-steps", type=int, default=4000, help="further steps, mostly letters and yes or no"
    )
    parser.add_argument("--last-steps", type=int, default=9000, help="further steps, on three times as many crops")
    parser.add_argument("--batch", type=int, default=96, help="crops per step of the tower")
    parser.add_argument("--tower-renders", type=int, default=48000)
    parser.add_argument("--language-renders", type=int, default=72000)
    parser.add_argument("--test-renders", type=int, default=3000)
    parser.add_argument("--save-every", type=int, default=200, help="steps between measured, resumable states")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    test = rendered_pool(args.work / "test", args.test_renders, (DOMAIN, args.seed, 3), render_any, args.threads)
    tower, heads, tower_curve = train_tower(args, test)
    data, test_data = prepare(args, tower, heads, test)
    torch.manual_seed(args.seed)
    model = build_llava(tower, tokenizer)
    curve = train_language(args, model, tokenizer, data, test_data)
    model.eval()
    save(args.out, model, tokenizer)
    write_json(
        args.out / "measured.json",
        {"parameters": sum(p.numel() for p in model.parameters()), "tower": tower_curve, "ranker": curve},
    )
    print(curve[-1])


if __name__ == "__main__":
    main()
