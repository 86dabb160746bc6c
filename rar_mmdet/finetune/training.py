"""LoRA training of a ranker's model by transformers' `Trainer`: what is ours is the batch, the loss and the looks.

A run's folder OUT gets checkpoints/ (states to go on from), adapter/ (PEFT's format, which servers load too),
curves.png, log.jsonl and summary.json.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rar_mmdet.errors import ConfigError, DatasetError, HostError, MissingAssetError
from rar_mmdet.finetune.batches import BatchMaker, answer_loss
from rar_mmdet.finetune.checks import Look, describe_checks, look_at
from rar_mmdet.finetune.curves import draw_curves
from rar_mmdet.finetune.rows import RankingRow, TaughtQuestions, hold_out, read_rows
from rar_mmdet.finetune.settings import LoraSettings, Schedule, TrainingRecipe
from rar_mmdet.rankers.adapters import Adapter, import_peft

__all__ = ["last_state", "lora_targets", "train_ranker", "trainer_class", "training_arguments", "with_lora"]

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"  # the file that transformers writes last into a checkpoint


def lora_targets(model: Any, projector: bool = False) -> str:
    """A regular expression for the linear layers of the language model, as PEFT takes it.

    Args:
        model: of `AutoModelForImageTextToText`.
        projector: whether those between image and language are among them.
    """
    head = model.get_output_embeddings()
    tower = re.compile(r"(^|\.)(vit|visual|vision_tower|vision_model|vision_encoder)(\.|$)")
    bridge = re.compile(r"(^|\.)(multi_modal_projector|connector|vision_proj|merger)(\.|$)|deepstack_merger")
    linears = [
        name
        for name, module in model.named_modules()
        # The partial LoRA that InternLM-XComposer2 brings is of its base and stays as it is.
        if isinstance(module, nn.Linear) and module is not head and "Plora_" not in name
    ]
    names = [name for name in linears if (projector if bridge.search(name) else not tower.search(name))]
    if not names:
        raise ConfigError(f"{type(model).__name__} has no linear layers in its language model; LoRA has nothing to do")
    # Layers differ by their number alone.
    return "|".join(sorted({re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(name)) for name in names}))


def with_lora(model: Any, settings: LoraSettings, base: str, seed: int) -> Any:
    """The model with fresh LoRA layers within it, which alone learn; a model wrapped by PEFT."""
    peft = import_peft()
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=lora_targets(model, settings.projector),
    )
    wrapped = peft.get_peft_model(model, config)
    config.base_model_name_or_path = base
    return wrapped


def rest_frozen(model: nn.Module) -> None:
    """Parts of a training model in which nothing learns behave as in use: statistics of batches stay what they are."""
    learns = [parameter.requires_grad for parameter in model.parameters()]
    if any(learns):
        for part in model.children():
            rest_frozen(part)
    elif learns:  # what has no parameters at all may be an adapter's dropout
        model.eval()


def train_ranker(
    recipe: TrainingRecipe, out: Path, device: str | None = None, tell: Callable[[str], object] = logger.info
) -> dict[str, Any]:
    """Train, or go on where a killed run was; what summary.json holds.

    Args:
        recipe: the parts.
        out: folder of the run.
        device: 'cpu' to leave a GPU alone; `None`: what accelerate chooses.
        tell: takes what people wait for: early looks, and the checks at the end.

    Raises:
        RarError: something is missing or wrong.
    """
    _import_accelerate()
    schedule, ranker = recipe.schedule, recipe.ranker
    if missing := ranker.missing_assets():
        raise MissingAssetError("; ".join(missing))
    rows, held = _rows(recipe)
    settings = training_arguments(schedule, out, device)
    ranker.load(settings.device)
    loaded = ranker.loaded
    cropper = recipe.cropper.with_size(ranker.crop_size)
    taught, looked = (
        TaughtQuestions(part, recipe.asks, cropper, ranker.special_tokens(), schedule.seed) for part in (rows, held)
    )
    # Where the base lies on this machine: of a hub id PEFT would ask the hub each time it saves.
    model = with_lora(loaded.model, recipe.adapter, str(ranker.checkpoint.folder), schedule.seed)
    looks = _Looks(recipe, looked, tell)
    trainer = trainer_class()(
        model=model,
        args=settings,
        train_dataset=taught,
        data_collator=BatchMaker(loaded, schedule.packed),
        callbacks=[looks.callback()],
    )
    _name_layers(trainer.accelerator.state, model)
    state = last_state(Path(settings.output_dir))
    if state is not None:
        logger.info("goes on from %s", state)
    known = torch.serialization.get_safe_globals()
    try:
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    finally:  # Trainer's own list, when it leaves, takes types with it that others had named (numpy's)
        torch.serialization.add_safe_globals(known)
    folder = out / "adapter"
    trainer.save_model(str(folder))
    checks = (looks.take(trainer.model), looks.take(trainer.model, is_blank=True)) if len(looked) else None
    if not trainer.is_world_process_zero():
        return {}
    for name in ("training_args.bin", "README.md"):  # a pickle, and a card with nothing on it
        (folder / name).unlink(missing_ok=True)
    Adapter(folder).name_base(ranker.checkpoint)
    return _finish(recipe, out, trainer, checks, len(rows), tell)


def _name_layers(state: Any, model: Any) -> None:
    """Tell FSDP which layers to split by: accelerate takes all names of a family, and refuses one the model has not."""
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        known = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(known.intersection(model._no_split_modules))


def last_state(folder: Path) -> Path | None:
    """The newest checkpoint that is whole: a run that was killed while it wrote one goes on from the one before."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _rows(recipe: TrainingRecipe) -> tuple[list[RankingRow], list[RankingRow]]:
    schedule = recipe.schedule
    rows = read_rows(recipe.records)
    if recipe.validation is None:
        rows, held = hold_out(rows, schedule.look_rows, schedule.seed)
    else:
        held = read_rows(recipe.validation)[: schedule.look_rows]
        photos = {row.photo for row in rows}
        if both := [row.photo for row in held if row.photo in photos]:
            raise DatasetError(f"{recipe.validation}: photo {both[0]} is also in {recipe.records}, which is learned")
    if not rows:
        raise DatasetError(f"{recipe.records}: all its rows are of the photos that are looked at; make more of them")
    return rows, held


def training_arguments(schedule: Schedule, out: Path, device: str | None) -> Any:
    """A schedule in transformers' words.

    Raises:
        ConfigError: there is no such device.
    """
    from transformers import TrainingArguments

    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {device}: give cpu or cuda; of several GPUs, CUDA_VISIBLE_DEVICES chooses")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; leave it out")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    is_checkpointed = (not on_cpu) if schedule.checkpointing is None else schedule.checkpointing
    # transformers 5.2x renamed them.
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    key = "activation_checkpointing" if new else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {key: True, f"{key}_kwargs": {"use_reentrant": False}} if is_checkpointed else {}
    settings = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=schedule.epochs,
        max_steps=schedule.steps or -1,
        learning_rate=schedule.learning_rate,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        warmup_steps=schedule.warmup,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(schedule.decay, schedule.decay),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_norm,
        save_strategy="steps",
        save_steps=schedule.save_every,
        save_total_limit=schedule.kept,
        logging_steps=10,
        logging_first_step=True,
        seed=schedule.seed,
        dataloader_num_workers=schedule.workers,
        # Pixels and boxes are found by index, which no column of a table is.
        remove_unused_columns=False,
        report_to="none",
        use_cpu=on_cpu,
        **checkpointing,
    )
    if settings.n_gpu > 1:  # Trainer would copy the model to each at every step; launchers start a process for each
        settings._n_gpu = 1
    return settings


def trainer_class() -> Any:
    """transformers' `Trainer` with the loss on the answers' tokens; imported when it is wanted."""
    from transformers import Trainer

    class RankingTrainer(Trainer):
        loss_is_scaled_for_ga = True  # by the tokens of all batches of a step

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Those tokens are counted where this holds; of Qwen's models, whose own loss takes no count, it does not.
            self.model_accepts_loss_kwargs = True

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Tensor],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | int | None = None,
        ) -> Any:
            wrapped: Any = self.model
            rest_frozen(wrapped)
            dtype = wrapped.get_base_model().dtype
            batch = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
            # The number is of the tokens of all processes, over whose gradients a mean is taken.
            return answer_loss(model, batch, num_items_in_batch) * self.accelerator.num_processes

    return RankingTrainer


class _Looks:
    """Early looks while a training runs: rank-1 on rows that are not learned from."""

    def __init__(self, recipe: TrainingRecipe, questions: TaughtQuestions, tell: Callable[[str], object]) -> None:
        self.ranker, self.every = recipe.ranker, recipe.schedule.look_every
        self.questions, self.tell = questions, tell

    def take(self, model: Any, is_blank: bool = False) -> Look:
        """One look at the weights as they are; all processes take it, for each may hold a part of them.

        Args:
            model: as Trainer has it; the ranker's is within.
            is_blank: see `look_at`.
        """
        was_training = model.training
        model.eval()  # nothing is dropped, and activations are not computed twice
        try:
            return _as_forward(model, lambda: look_at(self.ranker, self.questions, is_blank=is_blank))
        finally:
            model.train(was_training)

    def callback(self) -> Any:
        from transformers import TrainerCallback

        looks = self

        class Looking(TrainerCallback):
            def _look(self, state: Any, model: Any) -> None:
                if looks.every and len(looks.questions):
                    found = looks.take(model)
                    state.log_history.append({"step": state.global_step, "rank_one": found.rank_one})
                    if state.is_world_process_zero:
                        said = f"{100 * found.rank_one:.1f} % (chance {100 * found.chance:.1f} %)"
                        looks.tell(f"step {state.global_step}: rank-1 on {found.number} held-out questions {said}")

            def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                if state.global_step == 0:
                    self._look(state, model)

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                if looks.every and state.global_step % looks.every == 0 and state.global_step < state.max_steps:
                    self._look(state, model)

        return Looking()


def _as_forward(model: Any, call: Callable[[], Look]) -> Look:
    """Call what uses parts of a model; where FSDP has split it, within its hooks of the whole model's forward."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    is_split = isinstance(model, FSDPModule)
    if not is_split:
        return call()
    for part in model.modules():  # what is gathered for the first time in inference mode can never learn
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()
    model.look = call
    register_fsdp_forward_method(model, "look")
    return model.look()


def _finish(
    recipe: TrainingRecipe,
    out: Path,
    trainer: Any,
    checks: tuple[Look, Look] | None,
    learned: int,
    tell: Callable[[str], object],
) -> dict[str, Any]:
    """Curves, the two checks (with photos, without), summary.json."""
    history = trainer.state.log_history
    with open(out / "log.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in history)
    summary: dict[str, Any] = {
        "base": recipe.ranker.checkpoint.model,
        "asks": [dict(ask.report()) for ask in recipe.asks],
        "rows": learned,
        "steps": trainer.state.global_step,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "adapter": asdict(recipe.adapter),
        "schedule": asdict(recipe.schedule),
    }
    if checks is not None:
        seen, blank = checks
        history.append({"step": trainer.state.global_step, "rank_one": seen.rank_one})
        summary |= {"seen": seen.summary(), "blank": blank.summary()}
        tell(describe_checks(seen, blank))
    draw_curves(history, out / "curves.png")
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _import_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise HostError(
            f"training needs the package accelerate, which cannot be imported ({error}): pip install 'rar_mmdet[train]'"
        ) from error
