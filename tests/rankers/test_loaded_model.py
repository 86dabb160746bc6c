import json
import shutil

import pytest
import torch

from rar_mmdet.errors import RankerLoadError
from rar_mmdet.rankers import Generate, Question, TransformersRanker
from rar_mmdet.rankers.loaded_model import read_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("llava"), tmp_path / "copy")


def refused(folder, message):
    with pytest.raises(RankerLoadError, match=message):
        read_model(folder, torch.device("cpu"), torch.float32)


def test_incomplete_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "down_proj" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "does not fill the model: .*down_proj")


def test_truncated_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refused(folder, "a weight file in .*copy is damaged: .* Download it again")


def test_misshapen_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "could not be loaded as a vision-language model")


def test_a_model_of_another_kind_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused(folder, "could not be loaded as a vision-language model")


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.5}, {"forced_eos_token_id": 70}, {"guidance_scale": 3.0}, {"num_beams": 3}]
)
def test_generation_settings_of_a_hub_do_not_count(tiny_model, folder, setting):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **setting}))
    pixels = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rankers = [TransformersRanker(model=m, ask=Generate(max_new_tokens=24)) for m in (tiny_model("llava"), folder)]
    plain, other = (next(r.answer([Question(pixels, ("cat", "dog", "red car"))]))[0] for r in rankers)
    assert plain.reply
    assert other == plain


def test_a_list_ends_the_reply_once_it_names_a_candidate(tiny_model):
    loaded = TransformersRanker(model=tiny_model("llava")).loaded
    crop = torch.zeros(3, 28, 28, dtype=torch.uint8)
    stop = loaded.list_closed([Question(crop, ("cat", "dog"))] * 2, start=3)
    replies = {"[1]": False, "[1] ['dog']": True, "['dog', ": False, "['wolf']": False, "dog [1]": False}
    replies |= {'[["dog", 0.9]': False, '[["dog", 0.9], ["cat", 0.1]]': True}
    for reply, closed in replies.items():
        # The prompt shows the candidates; only what follows it is the reply.
        row = [5, 6, 7, *loaded.dialogue.tokens(reply)]
        assert stop(torch.tensor([row, [0] * len(row)]), None).tolist() == [closed, False]
