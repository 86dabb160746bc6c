"""What the demo ranker learns from: crops as a ranker meets them, candidate lists, prompts and their answers."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from training import uniform_log
from transformers import PreTrainedTokenizerFast
from world import ATTRIBUTES, CLASS_NAMES, COLOURS, NUM_CLASSES, PATTERNS, SHAPES, blur_outside, draw_crop, rare_classes

SIZE = 64
PROMPTS: dict[str, str] = json.loads(Path(__file__).with_name("prompts.json").read_text())
COUNT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if not loop.last %} {% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


# ---- crops ---------------------------------------------------------------------------------------------------------


def _ranker_crop(rng: np.random.Generator, class_index: int, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A crop as a region cropper makes it: window 1 to 2.8 around 14 to 170 px, resized, often blurred outside."""
    window, side = rng.uniform(1.0, 2.8), uniform_log(rng, 14, 170)
    canvas = int(np.clip(round(side * window), 14, 112))
    picture = draw_crop(rng, class_index, neighbours, window, canvas)
    if rng.random() < 0.5:
        picture = blur_outside(picture, window, uniform_log(rng, 0.01, 0.10))
    if rng.random() < 0.15:  # a window that leaves the photo is filled with the mean colour
        strip, side_of_picture = max(int(rng.uniform(0, 0.5 - 0.45 / window) * canvas), 0), int(rng.integers(4))
        picture = np.rot90(picture, side_of_picture).copy()
        picture[:strip] = picture.mean((0, 1)).astype(np.uint8)
        picture = np.ascontiguousarray(np.rot90(picture, -side_of_picture))
    interpolation = cv2.INTER_AREA if canvas > SIZE else (cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC)
    return cv2.resize(picture, (SIZE, SIZE), interpolation=interpolation), np.array([class_index, min(side, 170.0)])


def render_known(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A training crop; classes alike, except the rare ones, which are never shown."""
    known = np.setdiff1d(np.arange(NUM_CLASSES), rare_classes())
    return _ranker_crop(rng, int(rng.choice(known)), known)


def render_any(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A test crop; all classes alike, rare ones included."""
    return _ranker_crop(rng, int(rng.integers(NUM_CLASSES)), np.arange(NUM_CLASSES))


# ---- candidate lists -----------------------------------------------------------------------------------------------


def _perturb(rng: np.random.Generator, class_index: int) -> int:
    """A class that shares two, one or no attributes with the given one (p = .6, .3, .1)."""
    shared = rng.choice((2, 1, 0), p=(0.6, 0.3, 0.1))
    return int(rng.choice(np.flatnonzero((ATTRIBUTES[class_index] == ATTRIBUTES).sum(1) == shared)))


def leak_free_list(rng: np.random.Generator, truth: int, length: int) -> list[int]:
    """Truth and look-alikes, shuffled, such that the truth is not the list's most central name.

    The others are perturbations of a centre that is itself a perturbation of the truth and is left out. Perturbing
    the truth directly would give it away: the name that shares most with the rest would be right 78 % of the time,
    without a look at the picture.
    """
    centre, found = _perturb(rng, truth), [truth]
    while len(found) < length:
        other = _perturb(rng, centre)
        if other not in (*found, centre):
            found.append(other)
    return rng.permutation(found).tolist()


def retrieved_list(rng: np.random.Generator, truth: int, retrieved: Sequence[int], length: int) -> list[int]:
    """The retriever's best names with the truth put in if it is missing, shuffled."""
    found = list(retrieved[:length])
    if truth not in found:
        found[-1] = truth
    return rng.permutation(found).tolist()


def unrelated_list(rng: np.random.Generator, truth: int, length: int) -> list[int]:
    """The truth among random names, shuffled."""
    others = rng.choice(np.setdiff1d(np.arange(NUM_CLASSES), [truth]), length - 1, replace=False)
    return rng.permutation([truth, *others]).tolist()


# ---- prompts and answers -------------------------------------------------------------------------------------------


def render_prompt(kind: str, names: Sequence[str], name: str = "") -> str:
    """Fill in one of demo/prompts.json for these candidates."""
    letters = string.ascii_uppercase
    fields = {
        "{categories}": str(list(names)),
        "{option_lines}": "\n".join(f"{a}. {b}" for a, b in zip(letters, names, strict=False)),
        "{name}": name,
        "{k}": str(len(names)),
        "{count}": COUNT_WORDS[len(names)],
        "{format}": str([f"category {a}" for a in letters[: len(names)]]),
    }
    text = PROMPTS[kind]
    for field, value in fields.items():
        text = text.replace(field, value)
    return text


def chat(prompt: str) -> str:
    """What the chat template makes of one user turn with a picture."""
    return f"USER: <image>\n{prompt} ASSISTANT:"


@dataclass(frozen=True)
class Example:
    """A question and its answer, without the picture; ``emphasis`` is the part that decides the order."""

    prompt: str
    answer: str
    emphasis: str
    options: tuple[int, ...] = ()  # the classes behind A, B, C ...


def make_example(rng: np.random.Generator, kind: str, truth: int, candidates: Sequence[int]) -> Example:
    """Question of one kind about a picture of ``truth``."""
    names, best = [CLASS_NAMES[c] for c in candidates], CLASS_NAMES[truth]
    if kind in ("name", "choose"):
        return Example(render_prompt(kind, names), f" {best}", f" {best}")
    if kind == "letter":
        answer = f" {string.ascii_uppercase[list(candidates).index(truth)]}"
        return Example(render_prompt(kind, names), answer, answer, tuple(candidates))
    if kind == "yesno":
        wrong = [c for c in candidates if c != truth]
        asked, answer = (truth, " yes") if rng.random() < 0.5 else (int(rng.choice(wrong)), " no")
        return Example(render_prompt(kind, names, CLASS_NAMES[asked]), answer, answer)
    alike = (ATTRIBUTES[list(candidates)] == ATTRIBUTES[truth]).sum(1)
    order = np.argsort(-alike, kind="stable")
    return Example(render_prompt(kind, names), f" {[names[i] for i in order]}", f" ['{best}'")


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for _ in range(4000):
        length = int(rng.integers(2, 9))
        candidates = rng.choice(NUM_CLASSES, length, replace=False).tolist()
        for kind in PROMPTS:
            if not kind.startswith("_"):
                example = make_example(rng, kind, candidates[0], candidates)
                yield chat(example.prompt) + example.answer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text round-trips) in which each word of a class name, letter and list mark is one token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\['|', '|'\]| ?\w+|\s+|[^\s\w]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=20,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=512,
    )
    result.add_special_tokens({"additional_special_tokens": ["<image>"]})
    for word in (*COLOURS, *PATTERNS, *SHAPES, *"ABCDEFGH", "yes", "no"):
        assert len(result(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    return result
