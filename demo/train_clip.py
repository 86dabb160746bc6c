"""Train the demo's retriever: a tiny open_clip model (ResNet-10-T at 64 px, text width 128) on rendered crops.

It stands in for CLIP ViT-B/16 where no weights can be downloaded, and is meant to have its habits: it learns from
web-like pictures (natively sharp, one object filling 25-100 % of the frame's side, with neighbours and clutter,
some with a blurred ground), class names follow a long tail, and the rare classes are never shown as the truth. A
tight crop of a small object, enlarged, is therefore foreign to it.

    python demo/train_clip.py                      # about 12 minutes on two CPU cores; kill and run again: it goes on
    python demo/train_clip.py --steps 50 --out /tmp/clip

Writes a folder that open_clip loads as ``local-dir:demo/weights/clip``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from training import load_checkpoint, rendered_pool, save_checkpoint, uniform_log, write_atomically, write_json
from transformers import PreTrainedTokenizerFast
from world import CLASS_NAMES, NUM_CLASSES, draw_crop, rare_classes, train_image_quota

HERE = Path(__file__).resolve().parent
DOMAIN = 7001  # first word of every seed drawn here; make_world.py uses another, so no photo is ever a training picture
SIZE = 64
TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a picture of a {}",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of many {}.",
    "a drawing of a {}.",
    "there is a {} in the scene.",
    "a good photo of a {}.",
    "a painting of a {}.",
    "a rendering of a {}.",
    "this is a {}.",
)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def render(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One training picture with its class and its window (side of the picture over side of the object)."""
    weights = train_image_quota()
    weights[rare_classes()] = 0
    known = np.flatnonzero(weights)
    class_index = int(rng.choice(known, p=weights[known] / weights.sum()))
    window = uniform_log(rng, 1.0, 3.0)
    blurred = uniform_log(rng, 0.02, 0.10) if rng.random() < 0.3 else 0.0
    return draw_crop(rng, class_index, known, window, SIZE, blurred), np.array([class_index, window])


def render_uniform(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One test picture: all classes alike, rare ones too, otherwise as in training but without a blurred ground."""
    class_index, window = int(rng.integers(NUM_CLASSES)), uniform_log(rng, 1.0, 3.0)
    return draw_crop(rng, class_index, np.arange(NUM_CLASSES), window, SIZE), np.array([class_index, window])


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the captions; the end token has the highest id, which is where open_clip pools."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("_", " "), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r" ?\w+|\s+|[^\s\w]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    captions = (template.format(name) for name in CLASS_NAMES for template in TEMPLATES)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=20,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens(["</s>"])
    ends = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=32
    )


def model_config(vocab_size: int) -> dict[str, Any]:
    """The ``model_cfg`` of open_clip."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": SIZE,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "local",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def normalise(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, 3, S, S) to the network's input."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, classes: Tensor) -> Tensor:
    """Symmetric InfoNCE; captions of one class share the target (UniCL, arXiv 2204.03610): frequent ones repeat."""
    logits = scale * images @ texts.T
    same = (classes[:, None] == classes[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


@torch.inference_mode()
def rank_of_truth(model: nn.Module, tokens: Tensor, pictures: Tensor, classes: Tensor) -> Tensor:
    """Rank (0 = best) of the true class among all 600, (B,) int64, with the single template 'a photo of a {}'."""
    model.eval()
    names = functional.normalize(model.encode_text(tokens), dim=-1)  # type: ignore[operator]
    images = torch.cat(
        [functional.normalize(model.encode_image(normalise(part)), dim=-1) for part in pictures.split(256)]
    )  # type: ignore[operator]
    model.train()
    scores = images @ names.T
    return (scores > scores.gather(1, classes[:, None])).sum(1)


def summary(ranks: Tensor) -> dict[str, float]:
    return {
        "n": len(ranks),
        "top1": round((ranks < 1).float().mean().item(), 4),
        "top5": round((ranks < 5).float().mean().item(), 4),
    }


def train(
    args: argparse.Namespace, model: nn.Module, tokenizer: PreTrainedTokenizerFast, test: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """Run or resume the training loop; returns the measured curve."""
    pictures, labels = rendered_pool(args.work / "train", args.renders, (DOMAIN, args.seed, 0), render, args.threads)
    classes = labels[:, 0].long()
    texts = [[template.format(name) for name in CLASS_NAMES] for template in TEMPLATES]
    tokens = torch.stack(
        [torch.as_tensor(tokenizer(row, padding="max_length", max_length=32)["input_ids"]) for row in texts]
    )
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.15)
    curve: list[dict[str, Any]] = []
    start = 0
    if (state := load_checkpoint(args.work / "state.pt")) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start, curve = state["step"], state["curve"]
    progress = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="train clip")
    for step in progress:
        rng = np.random.default_rng(
            [DOMAIN, args.seed, 1, step]
        )  # by step, so that a resumed run draws the same batches
        rows = torch.from_numpy(rng.choice(len(pictures), args.batch, replace=False))
        batch = pictures[rows]
        mirrored = torch.from_numpy(rng.random(args.batch) < 0.5)
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        caption = tokens[torch.from_numpy(rng.integers(len(TEMPLATES), size=args.batch)), classes[rows]]
        images, names, scale = model(normalise(batch), caption)
        loss = contrastive_loss(images, names, scale, classes[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # type: ignore[operator, union-attr]
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            ranks = rank_of_truth(model, tokens[2], test[0][:600], test[1][:600, 0].long())
            curve.append({"step": step + 1, "loss": round(loss.item(), 4), **summary(ranks)})
            progress.write(str(curve[-1]))
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            save_checkpoint(args.work / "state.pt", {**state, "step": step + 1, "curve": curve})
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "weights" / "clip", help="folder of the finished model")
    parser.add_argument(
        "--work", type=Path, default=Path("work_dirs/demo_clip"), help="rendered pictures and the state to resume from"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--renders", type=int, default=48000, help="training pictures")
    parser.add_argument(
        "--test-renders", type=int, default=3000, help="fresh pictures of all classes for the measured curve"
    )
    parser.add_argument("--save-every", type=int, default=50, help="steps between measured, resumable states")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    config = model_config(len(tokenizer))
    model = open_clip.model.CLIP(**config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    test = rendered_pool(args.work / "test", args.test_renders, (DOMAIN, args.seed, 2), render_uniform, args.threads)
    curve = train(args, model, tokenizer, test)

    tokens = torch.as_tensor(
        tokenizer([f"a photo of a {name}" for name in CLASS_NAMES], padding="max_length", max_length=32)["input_ids"]
    )
    classes = test[1][:, 0].long()
    ranks = rank_of_truth(model, tokens, test[0], classes)
    unseen = torch.isin(classes, torch.from_numpy(rare_classes()))
    result = {
        "all": summary(ranks),
        "rare": summary(ranks[unseen]),
        "not rare": summary(ranks[~unseen]),
        "curve": curve,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    write_json(args.out / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    write_atomically(args.out / "model.safetensors", lambda target: save_file(weights, target))
    write_json(args.out / "measured.json", result)
    print({name: value for name, value in result.items() if name != "curve"})


if __name__ == "__main__":
    main()
