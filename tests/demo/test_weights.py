"""The shipped weights load through the front doors of open_clip and transformers and know what their cards say."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import tiny_vision  # noqa: F401  registers the ranker's vision tower with transformers
import torch
from mmengine.config import Config
from PIL import Image
from ranker_data import PROMPTS, render_any, render_prompt
from safetensors.torch import load_file
from torch.nn import functional
from train_clip import render_uniform
from transformers import AutoModelForImageTextToText, AutoProcessor
from world import CLASS_NAMES

from rar_mmdet.components import build_component

CROPS = 60


@pytest.fixture(scope="module")
def clip(demo_dir):
    name = f"local-dir:{demo_dir / 'weights' / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def ranker(demo_dir):
    folder = demo_dir / "weights" / "ranker"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def crops():
    """Ranker crops of seeds that no training used: pictures, true classes, and the generator for their lists."""
    rng = np.random.default_rng([909, 1])
    pictures, labels = zip(*(render_any(rng) for _ in range(CROPS)), strict=True)
    return [Image.fromarray(picture) for picture in pictures], [int(label[0]) for label in labels], rng


def ask(ranker, pictures, prompts, answers=None):
    """Next-token logits after the prompts, or summed log-likelihoods of equally long answers."""
    model, processor = ranker
    texts = []
    for prompt in prompts:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        texts.append(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
    full = texts if answers is None else [text + answer for text, answer in zip(texts, answers, strict=True)]
    inputs = processor(images=pictures, text=full, return_tensors="pt", padding=True)
    with torch.inference_mode():
        logits = model(**inputs).logits
    if answers is None:
        return logits[:, -1]
    length = len(processor.tokenizer(answers[0], add_special_tokens=False)["input_ids"])
    logs = logits[:, -length - 1 : -1].log_softmax(-1)
    return logs.gather(2, inputs["input_ids"][:, -length:, None])[..., 0].sum(1)


def test_both_models_fit_in_the_repository(demo_dir):
    files = [path for path in (demo_dir / "weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".png"}  # nothing pickled


def test_clip_top5_holds_most_truths(clip):
    model, preprocess, tokenizer = clip
    rng = np.random.default_rng([909, 0])
    pictures, labels = zip(*(render_uniform(rng) for _ in range(100)), strict=True)
    with torch.inference_mode():
        images = model.encode_image(torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures]))
        texts = model.encode_text(tokenizer([f"a photo of a {name}" for name in CLASS_NAMES]))
    best = (functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T).topk(5).indices
    truth = torch.tensor([int(label[0]) for label in labels])
    assert (best == truth[:, None]).any(1).float().mean() > 0.8  # 0.92 on 3,000; chance is 0.008
    assert (best[:, 0] == truth).float().mean() > 0.4  # 0.57 on 3,000


def test_clip_tokenizer_keeps_every_class_apart(clip):
    tokens = clip[2]([f"a photo of a {name}" for name in CLASS_NAMES])
    assert len({tuple(row) for row in tokens.tolist()}) == 600
    assert tokens[0].tolist() == clip[2](["a photo of a " + CLASS_NAMES[0].replace(" ", "_")])[0].tolist()


def test_ranker_prefers_the_true_name_by_likelihood(ranker, crops):
    pictures, truths, rng = crops
    right = 0
    for picture, truth in zip(pictures, truths, strict=True):
        others = rng.choice(np.setdiff1d(np.arange(600), [truth]), 4, replace=False).tolist()
        names = [CLASS_NAMES[c] for c in (truth, *others)]
        scores = ask(ranker, [picture] * 5, [PROMPTS["name"]] * 5, [f" {name}" for name in names])
        right += int(scores.argmax() == 0)
    assert right / CROPS > 0.9


def test_ranker_answers_letters_and_yes_or_no(ranker, crops):
    pictures, truths, rng = crops
    token = {w: ranker[1].tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in [*"ABCDE", "yes", "no"]}
    prompts, places, questions = [], [], []
    for truth in truths:
        candidates = rng.permutation(
            [truth, *rng.choice(np.setdiff1d(np.arange(600), [truth]), 4, replace=False)]
        ).tolist()
        prompts.append(render_prompt("letter", [CLASS_NAMES[c] for c in candidates]))
        places.append(candidates.index(truth))
        asked = truth if len(questions) % 2 == 0 else next(c for c in candidates if c != truth)
        questions.append(render_prompt("yesno", [], CLASS_NAMES[asked]))
    letters = ask(ranker, pictures, prompts)[:, [token[a] for a in "ABCDE"]].argmax(1)
    assert (letters == torch.tensor(places)).float().mean() > 0.8
    yes = (ask(ranker, pictures, questions)[:, [token["no"], token["yes"]]]).argmax(1)
    assert (yes == torch.tensor([1, 0] * (CROPS // 2))).float().mean() > 0.85


@pytest.mark.parametrize(
    ("config", "prompt"), [("generate", "paper"), ("likelihood", "choose"), ("letter", "letter"), ("yesno", "yesno")]
)
def test_the_demo_configs_ask_what_the_ranker_learned(demo_dir, config, prompt):
    file = demo_dir.parent / "configs" / "demo" / f"rar_demo_{config}.py"
    ranker = build_component(Config.fromfile(file).model.recognizer.ranker, "ranker")
    assert ranker.ask.name == config
    assert ranker.ask.wording.text == PROMPTS[prompt]
    assert ranker.limits.decisive_margin in (0.46, 0.53)
    assert ranker.missing_assets() == []


def test_the_tower_is_known_only_to_who_names_it(demo_dir):
    """Nothing registers it for everybody: in a fresh process the folder is refused until a config names the module."""
    code = f"""
import sys, torch
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.errors import RankerLoadError
folder, module = {str(demo_dir / "weights" / "ranker")!r}, {str(demo_dir / "tiny_vision.py")!r}
try:
    TransformersRanker(model=folder).loaded
except RankerLoadError as error:
    assert "modules" in str(error), error
else:
    raise SystemExit("loaded without its module")
model = TransformersRanker(model=folder, loading=dict(modules=[module])).loaded.model
print(type(model.model.vision_tower).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["TinyVisionModel"]


@pytest.mark.parametrize("kind", ["sort", "paper", "paper_in_context"])
def test_ranker_generates_a_list_that_starts_with_the_truth(ranker, crops, kind):
    pictures, truths, rng = crops
    model, processor = ranker
    texts = []
    for truth in truths[:20]:
        names = [CLASS_NAMES[c] for c in rng.permutation([truth, *rng.choice(600, 4, replace=False)]).tolist()]
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": render_prompt(kind, names)}]}
        texts.append(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
    inputs = processor(images=pictures[:20], text=texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    replies = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    starts = [reply.startswith(f" ['{CLASS_NAMES[t]}'") for reply, t in zip(replies, truths, strict=False)]
    assert np.mean(starts) > 0.7
    assert all(reply.startswith(" ['") and reply.endswith("']") for reply in replies)


def test_cards_report_what_was_measured(demo_dir):
    clip = json.loads((demo_dir / "weights" / "clip" / "measured.json").read_text())
    ranker = json.loads((demo_dir / "weights" / "ranker" / "measured.json").read_text())
    assert str(clip["all"]["top1"])[1:4] in (demo_dir / "weights" / "clip" / "README.md").read_text()
    assert str(ranker["ranker"][-1]["ranked"])[1:4] in (demo_dir / "weights" / "ranker" / "README.md").read_text()
    base = json.loads((demo_dir / "weights" / "base_ranker" / "measured.json").read_text())["base"][-1]
    card = (demo_dir / "weights" / "base_ranker" / "README.md").read_text()
    assert all(str(base[key])[1:] in card for key in ("name", "name, last wording"))


def test_the_base_shares_the_rankers_tower(demo_dir):
    base, ranker = (load_file(demo_dir / "weights" / name / "model.safetensors") for name in ("base_ranker", "ranker"))
    assert base.keys() == ranker.keys()
    for name, tensor in base.items():
        assert torch.equal(tensor, ranker[name]) == ("vision_tower" in name), name
