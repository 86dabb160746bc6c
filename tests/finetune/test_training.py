"""A training learns, goes on after a kill as if there had been none, and leaves an adapter that fits its base alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rar_mmdet.classification.command import _plain_text
from rar_mmdet.cli import main as rar_mmdet
from rar_mmdet.errors import ConfigError, DatasetError, MissingAssetError, RankerLoadError
from rar_mmdet.finetune.checks import Look, describe_checks, look_at
from rar_mmdet.finetune.merge_command import merge_adapter
from rar_mmdet.finetune.rows import TaughtQuestions, hold_out, read_rows
from rar_mmdet.finetune.settings import LoraSettings, Schedule, recipe_of_training
from rar_mmdet.finetune.training import last_state, lora_targets, rest_frozen, training_arguments, with_lora
from rar_mmdet.rankers import TransformersRanker
from rar_mmdet.rankers.asks import Generate
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.regions import RegionCropper

ROOT = Path(__file__).parents[2]


def write_config(folder, records, model, **schedule):
    settings = {"learning_rate": 3e-3, "batch_size": 4, "steps": 6, "save_every": 2, "look_every": 0, "workers": 0}
    config = {
        "ranker": {"type": "TransformersRanker", "model": str(model), "ask": "likelihood", "image_size": 28},
        "records": str(records),
        "asks": ["likelihood", "letter"],
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "schedule": {**settings, **schedule},
    }
    file = folder / "config.py"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in config.items()))
    return file


def train(config, out, *more):
    return rar_mmdet(["finetune", "train", str(config), "--out", str(out), "--device", "cpu", *more])


@pytest.fixture(scope="module")
def trained(tiny, records, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert train(write_config(folder, records, tiny("llava")), folder / "out") == 0
    return folder / "out"


def test_a_run_leaves_what_it_says(trained, capsys):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["seen"]["number"] == summary["blank"]["number"] == 2  # of one photo in twenty
    assert summary["seen"]["chance"] == pytest.approx(0.2)
    assert sorted(p.name for p in (trained / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]
    losses = [entry["loss"] for entry in map(json.loads, (trained / "log.jsonl").open()) if "loss" in entry]
    assert losses
    assert (trained / "curves.png").stat().st_size > 1000


def test_one_step_lowers_the_loss_of_its_batch(tiny, records):
    from rar_mmdet.finetune.batches import BatchMaker, answer_loss

    ranker = TransformersRanker(model=tiny("llava"), ask="likelihood", image_size=28)
    taught = TaughtQuestions(read_rows(records)[:4], [ranker.ask], RegionCropper(window="pad").with_size(28))
    loaded = ranker.loaded
    model = with_lora(loaded.model, LoraSettings(rank=4, dropout=0.0), "base", seed=0)
    batch = loaded.placed(BatchMaker(loaded)([taught[index] for index in range(4)]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = answer_loss(model, batch)
    before.backward()
    optimizer.step()
    assert answer_loss(model, batch) < before


DIES_AT_THE_FOURTH_STEP = """
import os, signal, sys
from transformers import Trainer
from rar_mmdet.cli import main
step, left = Trainer.training_step, iter(range(3))
def dying(*args, **kwargs):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
Trainer.training_step = dying
main(sys.argv[1:])
"""


def test_killed_and_resumed_equals_uninterrupted(trained, tiny, records, tmp_path):
    config, out = write_config(tmp_path, records, tiny("llava")), tmp_path / "out"
    words = ["finetune", "train", str(config), "--out", str(out), "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    died = subprocess.run(
        [sys.executable, "-c", DIES_AT_THE_FOURTH_STEP, *words], env=env, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    assert last_state(out / "checkpoints").name == "checkpoint-2"
    assert not (out / "adapter").exists()
    torch.serialization.add_safe_globals([np.ndarray])  # as the MMDetection part does for its checkpoints
    assert train(config, out) == 0
    assert np.ndarray in torch.serialization.get_safe_globals()
    wanted, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (trained, out))
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-5)


def expect_same_run(one, two):
    """Of two folders: adapters, logs and looks."""
    adapters = [load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, wanted in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], wanted, atol=1e-5, rtol=1e-5)
    logs = [[json.loads(line) for line in (out / "log.jsonl").open()] for out in (one, two)]
    for key in ("loss", "grad_norm", "rank_one"):
        wanted, found = ([entry[key] for entry in log if key in entry] for log in logs)
        assert found == pytest.approx(wanted, rel=1e-4)
    wanted, found = (json.loads((out / "summary.json").read_text()) for out in (one, two))
    for key in ("seen", "blank", "steps", "trained_parameters"):
        assert found[key] == wanted[key]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_accumulated_batches_equal_one(tiny, records, tmp_path, family):
    """Their answers are of different lengths, so that a mean of means would be another loss."""
    config = write_config(tmp_path, records, tiny(family), steps=3)
    for out, size, accumulation in (("one", 4, 1), ("two", 1, 4)):
        sizes = [f"schedule.batch_size={size}", f"schedule.accumulation={accumulation}"]
        assert train(config, tmp_path / out, "--cfg-options", "adapter.dropout=0", *sizes) == 0
    expect_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("way", "family"), [("processes", "qwen2_5_vl"), ("fsdp", "llava")])
def test_two_processes_equal_one_of_twice_the_batch(tiny, records, tmp_path, way, family):
    """By accelerate's launcher; `fsdp` with the file that is shipped."""
    config = write_config(tmp_path, records, tiny(family), steps=3, look_every=2)
    whole, halves = (["--cfg-options", "adapter.dropout=0", f"schedule.batch_size={size}"] for size in (4, 2))
    assert train(config, tmp_path / "one", *whole) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    if way == "fsdp":
        launch += ["--config_file", str(ROOT / "configs" / "finetune" / "accelerate" / "fsdp.yaml")]
        launch += [str(Path(__file__).with_name("fsdp_on_cpu.py"))]
    else:
        launch += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "-m", "rar_mmdet.cli"]
    found = subprocess.run(
        [*launch, "finetune", "train", str(config), "--out", str(tmp_path / "two"), "--device", "cpu", *halves],
        # A free port is torch's to find; the machine's own name need not be known.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PET_STANDALONE": "1", "PET_LOCAL_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    expect_same_run(tmp_path / "one", tmp_path / "two")


def test_a_process_trains_on_one_gpu(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 4)))
    assert training_arguments(Schedule(), tmp_path, "cpu").n_gpu <= 1


def test_a_state_that_was_being_written_is_passed_over(tmp_path):
    for step, files in ((2, ["trainer_state.json"]), (10, ["trainer_state.json"]), (12, ["optimizer.pt"])):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    assert last_state(tmp_path).name == "checkpoint-10"
    assert last_state(tmp_path / "none") is None


# ---- adapters ------------------------------------------------------------------------------------------------------


def scores_of(ranker):
    crop = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (answers,) = ranker.answer([Question(crop, ("cat", "red car", "salt shaker"))])
    return torch.tensor(answers[0].scores)


def as_served(base, adapter):
    """The base with an adapter as vLLM reads its folder: settings and weights by their names, W + alpha / r * B A."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    # What vLLM refuses (vllm/lora/peft_helper.py) is not there.
    assert settings["peft_type"] == "LORA"
    assert settings["bias"] == "none"
    assert not any(settings.get(key) for key in ("modules_to_save", "use_dora", "use_rslora", "rank_pattern"))
    weights = load_file(adapter / "adapter_model.safetensors")
    ranker = TransformersRanker(model=base, image_size=28)
    modules = dict(ranker.loaded.model.named_modules())
    names = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    assert len(weights) == 2 * len(names)
    for name in names:
        down, up = (weights[f"{name}.lora_{part}.weight"] for part in "AB")
        assert down.shape[0] == up.shape[1] == settings["r"]
        weight = modules[name.removeprefix("base_model.model.")].weight
        weight.data += settings["lora_alpha"] / settings["r"] * up @ down
    return ranker


def test_adapter_merged_and_as_servers_load_it_are_one_model(trained, tiny, tmp_path):
    from peft import PeftModel

    base, adapter = tiny("llava"), trained / "adapter"
    plain = TransformersRanker(model=base, image_size=28)
    on_top = TransformersRanker(model=base, image_size=28, adapter=adapter)
    merge_adapter(base, adapter, tmp_path / "merged")
    merged = TransformersRanker(model=tmp_path / "merged", image_size=28)
    beside = TransformersRanker(model=base, image_size=28)  # PEFT without us: the layers stay beside the weights
    PeftModel.from_pretrained(beside.loaded.model, str(adapter)).eval()
    assert (scores_of(on_top) - scores_of(plain)).abs().max() > 1e-2
    for other in (merged, beside, as_served(base, adapter)):
        torch.testing.assert_close(scores_of(other), scores_of(on_top), atol=1e-4, rtol=0)
    assert on_top.identity()["adapter"]["id"] == "adapter"
    assert "adapter" not in plain.identity()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
def test_every_family_takes_an_adapter(tiny, family, tmp_path):
    side = 32 if family == "qwen3_vl" else 28
    base = TransformersRanker(model=tiny(family), image_size=side)
    model = base.loaded.model
    wrapped = with_lora(model, LoraSettings(rank=2), str(tiny(family)), seed=0).eval()
    learned = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert not any(word in name for name in learned for word in ("vision", "visual", "projector", "connector"))
    assert len(learned) == 2 * 2 * 7  # A and B of seven linears in each of two layers
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wanted = scores_at(base, side)
    wrapped.save_pretrained(tmp_path)
    found = TransformersRanker(model=tiny(family), image_size=side, adapter=tmp_path)
    torch.testing.assert_close(scores_at(found, side), wanted, atol=2e-4, rtol=0)


def scores_at(ranker, side):
    crop = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (answers,) = ranker.answer([Question(crop, ("cat", "red car"))])
    return torch.tensor(answers[0].scores)


def test_the_same_base_in_another_folder_is_taken_without_a_word(trained, tiny, tmp_path, recwarn):
    shutil.copytree(tiny("llava"), tmp_path / "moved")
    wanted = scores_of(TransformersRanker(model=tiny("llava"), image_size=28, adapter=trained / "adapter"))
    found = scores_of(TransformersRanker(model=tmp_path / "moved", image_size=28, adapter=trained / "adapter"))
    torch.testing.assert_close(found, wanted)
    assert not [str(one.message) for one in recwarn if "base_model_name_or_path" in str(one.message)]


def test_a_wrong_base_is_refused_by_name(trained, tiny):
    other = tiny("llava", 1)
    with pytest.raises(RankerLoadError, match=rf"was trained on .*llava-0.*, and model=.*{other.name}.* is another"):
        _ = TransformersRanker(model=other, adapter=trained / "adapter").loaded


def test_an_adapter_of_another_trainer_is_refused_by_name(trained, tiny, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((trained / "adapter" / name).read_bytes())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "someone/llava-13b"})
    )
    with pytest.raises(RankerLoadError, match="was trained on 'someone/llava-13b', and model="):
        _ = TransformersRanker(model=tiny("llava"), adapter=tmp_path).loaded


def test_an_adapter_that_does_not_fit_is_refused(trained, tiny, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((trained / "adapter" / name).read_bytes())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": 2, "base_model_name_or_path": None}))
    with pytest.raises(RankerLoadError, match="does not fit the model"):
        _ = TransformersRanker(model=tiny("llava"), adapter=tmp_path).loaded


def test_a_table_of_another_adapter_in_the_same_folder_is_another(trained, tiny, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((trained / "adapter" / name).read_bytes())
    settings = {"model": str(tiny("llava")), "adapter": str(tmp_path), "cache": "answers.sqlite"}
    before = _plain_text(settings, TransformersRanker(**settings))
    assert before == _plain_text({**settings, "cache": "elsewhere"}, TransformersRanker(**settings))
    weights = {name: weight + 1 for name, weight in load_file(tmp_path / "adapter_model.safetensors").items()}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    assert _plain_text(settings, TransformersRanker(**settings)) != before


def test_a_folder_without_an_adapter_is_named(tiny, tmp_path):
    with pytest.raises(MissingAssetError, match="no adapter_config.json and no adapter_model.safetensors there"):
        TransformersRanker(model=tiny("llava"), adapter=tmp_path).load("cpu")


def test_merging_spares_a_folder_that_holds_a_model(trained, tiny):
    with pytest.raises(ConfigError, match="holds a model already"):
        merge_adapter(tiny("llava"), trained / "adapter", tiny("llava"))


# ---- settings and rows ---------------------------------------------------------------------------------------------


def config_of(model, **more):
    return {"ranker": {"type": "TransformersRanker", "model": str(model)}, "records": "records.jsonl", **more}


def test_settings_are_refused_by_name(tiny):
    with pytest.raises(ConfigError, match="has no key 'record'; did you mean 'records'"):
        recipe_of_training({"ranker": {}, "record": "x"})
    with pytest.raises(ConfigError, match="a IdentityRanker cannot be trained here"):
        recipe_of_training({"ranker": {"type": "IdentityRanker"}, "records": "x"})
    with pytest.raises(ConfigError, match="it has the adapter"):
        recipe_of_training(
            {"ranker": {"type": "TransformersRanker", "model": "m", "adapter": "a"}, "records": "records.jsonl"}
        )
    with pytest.raises(ConfigError, match="schedule.batch_size must be a whole number"):
        Schedule(batch_size=0)
    with pytest.raises(ConfigError, match="decay must be"):
        Schedule(decay="polynomial")
    with pytest.raises(ConfigError, match="learning_rate and epochs must be above 0"):
        Schedule(learning_rate=0)
    with pytest.raises(ConfigError, match="rank must be at least 1"):
        LoraSettings(rank=0)
    assert recipe_of_training(config_of(tiny("llava"))).asks[0].name == "likelihood"
    assert [ask.name for ask in recipe_of_training(config_of("m", asks=["letter", "yesno"])).asks] == [
        "letter",
        "yesno",
    ]


def test_rows_are_refused_by_line(tmp_path):
    file = tmp_path / "records.jsonl"
    with pytest.raises(MissingAssetError, match="rar-mmdet finetune data"):
        read_rows(file)
    file.write_text("")
    with pytest.raises(DatasetError, match="is empty"):
        read_rows(file)
    file.write_text('{"photo": "a.png"}\n')
    with pytest.raises(DatasetError, match="line 1 is no record"):
        read_rows(file)
    file.write_text('{"photo": "a.png", "names": ["a", "b"], "truth": 2, "target": [0, 1]}\n')
    with pytest.raises(DatasetError, match="do not fit 2 names"):
        read_rows(file)


def test_held_out_rows_are_of_other_photos(records):
    rows = read_rows(records)
    kept, held = hold_out(rows, 4, seed=0)
    assert len(held) == 2  # of one photo in twenty at most
    assert {row.photo for row in held}.isdisjoint(row.photo for row in kept)
    assert hold_out(rows, 4, seed=0)[1] == held
    assert hold_out(rows, 0, seed=0) == (rows, [])


def test_what_does_not_learn_is_not_in_training_mode(tiny):
    ranker = TransformersRanker(model=tiny("llava"), image_size=28)
    model = with_lora(ranker.loaded.model, LoraSettings(rank=2), "base", seed=0).train()
    rest_frozen(model)
    base = model.get_base_model().model
    assert not any(module.training for module in base.vision_tower.modules())
    layer = base.language_model.layers[0]  # whose activations may have to be computed again
    assert layer.training
    assert layer.mlp.up_proj.lora_dropout["default"].training
    assert not layer.input_layernorm.training


def test_targets_leave_the_tower_and_the_head_alone(tiny):
    model = TransformersRanker(model=tiny("llava"), image_size=28).loaded.model
    assert "vision" not in lora_targets(model)
    assert "lm_head" not in lora_targets(model)
    assert "multi_modal_projector" in lora_targets(model, projector=True)


def test_a_look_counts_the_right_name_not_the_most_similar_one(records):
    class Copier:
        """Answers with the list as it is shown; names of the fourth question it does not know."""

        ask = Generate()

        def answer(self, questions):
            yield {i: Answer(reply=str(list(q.candidates)) if i != 3 else "no idea") for i, q in enumerate(questions)}

    rows = read_rows(records)[:10]
    rows = [replace(row, target=tuple(reversed(row.target))) for row in rows]
    questions = TaughtQuestions(rows, [Copier.ask], RegionCropper(window="pad").with_size(28))
    look = look_at(Copier(), questions)
    right = [row.truth == 0 for number, row in enumerate(rows) if number != 3]
    assert (look.number, look.unread, look.places) == (10, 1, {0: 9})
    assert look.rank_one == sum(right) / 10
    assert look.names[rows[0].names[0]] >= 1
    assert look_at(Copier(), questions, is_blank=True) == look


@pytest.mark.parametrize(
    ("seen", "blank", "said"),
    [
        pytest.param(0.8, 0.21, "as it should be", id="ranks"),
        pytest.param(0.8, 0.6, "can be told without the photo", id="does-not-look"),
        pytest.param(0.2, 0.2, "has not learned to rank", id="chance"),
    ],
)
def test_the_two_checks_say_what_they_see(seen, blank, said):
    def look(share):
        return Look(share, 0.2, 0, 200, {0: 120, 1: 80}, {"cat": 150, "dog": 50})

    text = describe_checks(look(seen), look(blank))
    assert said in text
    assert "cat (150), dog (50)" in text
