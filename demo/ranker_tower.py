"""Stage 1 of the demo ranker: its vision tower learns colour, pattern and shape as a classifier."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from ranker_data import SIZE, render_known
from tiny_vision import TinyVisionConfig, TinyVisionModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from training import load_checkpoint, rendered_pool, save_checkpoint
from world import ATTRIBUTES, COLOURS, PATTERNS, SHAPES

DOMAIN = 7002  # first word of every seed of the ranker; make_world.py and train_clip.py use others
VISUAL_TOKENS = 16


def normalise(pictures: Tensor) -> Tensor:
    """uint8 pictures (B, 3, S, S) to the tower's input in [-1, 1]."""
    return pictures.float() / 127.5 - 1


class AttributeHeads(nn.Module):
    """Colour, pattern and shape from visual tokens, each by its own attention over them; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        counts = (len(COLOURS), len(PATTERNS), len(SHAPES))
        self.look = nn.Linear(width, len(counts))
        self.place = nn.Parameter(torch.zeros(VISUAL_TOKENS, len(counts)))
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in counts)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        weights = (self.look(tokens) + self.place).softmax(1)  # (B, 16, 3)
        pooled = torch.einsum("btc,bta->abc", tokens, weights)
        return [head(part) for head, part in zip(self.heads, pooled, strict=True)]


@torch.inference_mode()
def class_log_probs(heads: AttributeHeads, tokens: Tensor) -> Tensor:
    """log p(class) as the heads see it, their three attributes taken as independent, (B, 600) float16."""
    parts, attributes = [], torch.from_numpy(ATTRIBUTES)
    for part in tokens.split(1000):
        logs = [guess.log_softmax(1) for guess in heads(part.float())]
        parts.append(torch.stack([log[:, attributes[:, i]] for i, log in enumerate(logs)]).sum(0).half())
    return torch.cat(parts)


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Learning rate as a share of its peak."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    parameters = list(parameters)
    matrices, rest = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )


@torch.inference_mode()
def joint_accuracy(tower: nn.Module, heads: nn.Module, pictures: Tensor, classes: Tensor) -> dict[str, float]:
    """Share of test crops with every attribute right, and per attribute."""
    tower.eval()
    right = []
    for part, truth in zip(pictures.split(250), torch.from_numpy(ATTRIBUTES)[classes].split(250), strict=True):
        guesses = heads(tower(normalise(part)).last_hidden_state)
        right.append(torch.stack([guess.argmax(1) for guess in guesses], 1) == truth)
    tower.train()
    hits = torch.cat(right)
    names = ("colour", "pattern", "shape")
    return {
        "joint": round(hits.all(1).float().mean().item(), 4),
        **{n: round(hits[:, i].float().mean().item(), 4) for i, n in enumerate(names)},
    }


def train_tower(
    args: argparse.Namespace, test: tuple[Tensor, Tensor]
) -> tuple[TinyVisionModel, AttributeHeads, list[dict[str, Any]]]:
    """Stage 1; resumes from its checkpoint."""
    torch.manual_seed(args.seed)
    tower = TinyVisionModel(TinyVisionConfig(image_size=SIZE)).to(memory_format=torch.channels_last)
    heads = AttributeHeads(tower.config.hidden_size)
    both = nn.ModuleList([tower, heads])
    optimizer = make_optimizer(both.parameters(), 2e-3)
    start, curve = 0, []
    if (state := load_checkpoint(args.work / "tower.pt")) is not None:
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], state["curve"]
    if start == args.tower_steps:
        return tower.eval(), heads.eval(), curve
    pictures, labels = rendered_pool(
        args.work / "tower", args.tower_renders, (DOMAIN, args.seed, 1), render_known, args.threads
    )
    truth = torch.from_numpy(ATTRIBUTES)[labels[:, 0].long()]
    progress = tqdm(range(start, args.tower_steps), initial=start, total=args.tower_steps, desc="train tower")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine_with_warmup(step, args.tower_steps, 40)
        rng = np.random.default_rng(
            [DOMAIN, args.seed, 11, step]
        )  # by step, so that a resumed run draws the same batches
        rows = torch.from_numpy(rng.choice(len(pictures), args.batch, replace=False))
        batch = pictures[rows]
        mirrored = torch.from_numpy(rng.random(args.batch) < 0.5)
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        guesses = heads(tower(normalise(batch)).last_hidden_state)
        loss = torch.stack([functional.cross_entropy(guess, truth[rows, i]) for i, guess in enumerate(guesses)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % args.save_every == 0 or step + 1 == args.tower_steps:
            curve.append(
                {
                    "step": step + 1,
                    "loss": round(loss.item(), 4),
                    **joint_accuracy(tower, heads, test[0][:1000], test[1][:1000, 0].long()),
                }
            )
            progress.write(f"tower {curve[-1]}")
            save_checkpoint(
                args.work / "tower.pt",
                {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "curve": curve},
            )
    return tower.eval(), heads.eval(), curve
