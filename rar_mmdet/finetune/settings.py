"""What a training is: adapter, schedule, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rar_mmdet.components import build_component, check_keys
from rar_mmdet.errors import ConfigError
from rar_mmdet.rankers.asks import as_ask
from rar_mmdet.rankers.options import as_options
from rar_mmdet.rankers.questions import Ask
from rar_mmdet.rankers.transformers_ranker import TransformersRanker
from rar_mmdet.regions import RegionCropper

__all__ = ["LoraSettings", "Schedule", "TrainingRecipe", "recipe_of_training"]


@dataclass(frozen=True)
class LoraSettings:
    """LoRA (arXiv 2106.09685) on the linear layers of the language model; the paper does not say its own.

    Args:
        rank: r of the two thin matrices (ours).
        alpha: their product counts alpha / rank times (twice the rank, as LLaVA's own LoRA script).
        dropout: on what goes into them (LLaVA's).
        projector: whether the layers between image and language get some too.
    """

    rank: int = 64
    alpha: float = 128
    dropout: float = 0.05
    projector: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"adapter: rank must be at least 1, alpha above 0, dropout in [0, 1); got rank={self.rank}, "
                f"alpha={self.alpha}, dropout={self.dropout}"
            )


@dataclass(frozen=True)
class Schedule:
    """Steps of a training.

    Args:
        epochs: passes over the rows (1 in the paper, section 4.1).
        steps: at most so many; `None`: as many as the epochs have.
        learning_rate: at its peak (1e-5 in the paper, section 4.1).
        batch_size: rows of a process and step; every text of a way to ask is asked.
        accumulation: batches before a step; the paper does not say how many rows it takes.
        warmup: share of the steps in which the rate rises (LLaVA's).
        decay: 'cosine', 'linear' or 'constant', behind it.
        weight_decay: of AdamW.
        max_norm: of the gradient.
        checkpointing: compute activations again instead of keeping them; `None`: on a GPU.
        packed: texts about one photo share a row (see `finetune.batches`).
        save_every: steps between states to go on from.
        kept: states on disk.
        look_every: steps between early looks; 0: none but the last.
        look_rows: rows to look at, of photos that are not learned from.
        workers: processes that read photos.
        seed: of order, adapter and dropout.
    """

    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float = 1e-5
    batch_size: int = 8
    accumulation: int = 1
    warmup: float = 0.03
    decay: str = "cosine"
    weight_decay: float = 0.0
    max_norm: float = 1.0
    checkpointing: bool | None = None
    packed: bool = True
    save_every: int = 200
    kept: int = 2
    look_every: int = 200
    look_rows: int = 200
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("batch_size", "accumulation", "save_every", "kept")}
        if self.steps is not None:
            counts["steps"] = self.steps
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"schedule.{name} must be a whole number of at least 1, got {value!r}")
        if self.decay not in ("cosine", "linear", "constant"):
            raise ConfigError(f"schedule.decay must be 'cosine', 'linear' or 'constant', got {self.decay!r}")
        if not self.learning_rate > 0 or not self.epochs > 0 or not 0 <= self.warmup < 1:
            raise ConfigError(
                "schedule: learning_rate and epochs must be above 0, warmup in [0, 1); got "
                f"{self.learning_rate}, {self.epochs}, {self.warmup}"
            )


@dataclass(frozen=True)
class TrainingRecipe:
    """The parts of a training.

    Args:
        ranker: the model as it will be asked; its way to ask is the one it is looked at in.
        records: rows of `rar-mmdet finetune data`.
        validation: rows to look at; `None`: some of `records`, of photos that are then not learned from.
        asks: ways to ask that are taught; `None`: the ranker's.
        cropper: how a photo becomes a crop, as `ranker_cropper` of `rar-mmdet classify`.
        adapter, schedule: settings.
    """

    ranker: TransformersRanker
    records: Path
    validation: Path | None = None
    asks: tuple[Ask, ...] = ()
    cropper: RegionCropper = field(default_factory=lambda: RegionCropper(window="pad"))
    adapter: LoraSettings = LoraSettings()
    schedule: Schedule = Schedule()


def recipe_of_training(config: Mapping[str, Any]) -> TrainingRecipe:
    """The parts that a config names; nothing is loaded yet.

    Raises:
        ConfigError: a key is unknown or missing, or a value refused.
    """
    settings = {key: value for key, value in config.items() if value is not None}
    check_keys(TrainingRecipe, "a training", settings, "config")
    ranker = build_component(settings["ranker"], "ranker")
    if not isinstance(ranker, TransformersRanker):
        raise ConfigError(
            f"ranker: a {type(ranker).__name__} cannot be trained here, a TransformersRanker can; of a server's "
            "model, train the folder that it serves"
        )
    if ranker.adapter is not None:
        raise ConfigError(
            f"ranker: it has the adapter {ranker.adapter.folder} on; `rar-mmdet finetune merge` it first, and train "
            "the merged folder"
        )
    asks = settings.get("asks") or [ranker.ask]
    asks = [asks] if isinstance(asks, (str, Mapping)) or not isinstance(asks, Sequence) else asks
    return TrainingRecipe(
        ranker=ranker,
        records=Path(settings["records"]),
        validation=Path(settings["validation"]) if "validation" in settings else None,
        asks=tuple(as_ask(ask) for ask in asks),
        cropper=build_component(settings.get("cropper", {"window": "pad"}), "cropper", "RegionCropper"),
        adapter=as_options(LoraSettings, settings.get("adapter"), "adapter"),
        schedule=as_options(Schedule, settings.get("schedule"), "schedule"),
    )
