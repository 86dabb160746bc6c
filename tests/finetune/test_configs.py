"""Every config of a training names only what exists, and asks for what it says."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from rar_mmdet.components import read_config
from rar_mmdet.finetune.settings import recipe_of_training

ROOT = Path(__file__).parents[2] / "configs" / "finetune"
CONFIGS = sorted(path.name for path in ROOT.glob("*.py"))


def test_the_promised_ones_are_there():
    promised = {f"{source}_{model}.py" for source in ("aircraft", "cars") for model in ("llava", "qwen", "internlm")}
    assert promised | {"classifier_llava.py", "demo.py"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_a_training(name):
    recipe = recipe_of_training(read_config(ROOT / name))
    source, _, model = name.removesuffix(".py").partition("_")
    if source in ("aircraft", "cars"):
        assert recipe.schedule.learning_rate == 1e-5
        assert recipe.schedule.epochs == 1
        assert [(ask.name, ask.wording.name) for ask in recipe.asks] == [("generate", "paper")]
        assert recipe.ranker.ask == recipe.asks[0]
        assert recipe.records.parent.name == source
        assert model[:4] in recipe.ranker.checkpoint.model.lower()
    if source == "classifier":
        assert not recipe.ranker.ask.wording.mentions_candidates


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_accelerate_reads_its_files(name):
    assert load_config_from_file(str(ROOT / "accelerate" / f"{name}.yaml")).distributed_type.value == name.upper()
