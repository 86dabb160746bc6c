import json

import pytest

from rar_mmdet.errors import RankerLoadError
from rar_mmdet.files.checkpoints import Checkpoint


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Checkpoint(str(folder))


def test_special_tokens_of_slow_tokenizers(tmp_path):
    end = {"content": "</s>", "lstrip": False}
    more = ["<image>", {"content": "<video>"}]
    checkpoint = write(
        tmp_path,
        special_tokens_map={"bos_token": "<s>", "eos_token": end, "additional_special_tokens": more},
        added_tokens={"[IMG]": 32000},
    )
    assert checkpoint.special_tokens == ("<image>", "<video>", "[IMG]", "</s>", "<s>")


def test_special_tokens_of_fast_tokenizers(tmp_path):
    checkpoint = write(
        tmp_path,
        tokenizer={"added_tokens": [{"id": 0, "content": "<pad>"}], "model": {"vocab": {"cat": 1}}},
        tokenizer_config={
            "add_bos_token": True,
            "unk_token": None,
            "added_tokens_decoder": {"2": {"content": "<end>", "special": True}},
            "extra_special_tokens": {"image_token": "<im>"},
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    assert checkpoint.special_tokens == ("<end>", "<pad>", "<im>")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config", lambda checkpoint: checkpoint.image_size()),
        ("tokenizer", lambda checkpoint: checkpoint.special_tokens),
        ("model.safetensors.index", lambda checkpoint: checkpoint.missing()),
    ],
)
def test_damaged_json_is_named(tmp_path, name, read):
    checkpoint = write(tmp_path, **{name: []})
    with pytest.raises(RankerLoadError, match=f"{name}.json must be one JSON object, got a list. Download it again"):
        read(checkpoint)
    (tmp_path / f"{name}.json").write_text('{"model_type": "lla')
    with pytest.raises(RankerLoadError, match=f"{name}.json is not JSON: Unterminated string .* Download it again"):
        read(Checkpoint(str(tmp_path)))
