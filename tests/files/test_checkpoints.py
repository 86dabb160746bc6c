import hashlib
import json
import re
import time

import pytest

from rar_mmdet.errors import CheckpointError, RankerLoadError
from rar_mmdet.files.checkpoints import Checkpoint, file_sha256


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
    with pytest.raises(CheckpointError, match=f"{name}.json must be one JSON object, got a list. Download it again"):
        read(checkpoint)
    (tmp_path / f"{name}.json").write_text('{"model_type": "lla')
    with pytest.raises(RankerLoadError, match=f"{name}.json is not JSON: Unterminated string .* Download it again"):
        read(Checkpoint(str(tmp_path), error=RankerLoadError))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/name", "ranker model 'org/name': no such folder, and not in .* run `hf download org/name`"),
        ("/no/where", "ranker model '/no/where': no such folder.* give the folder of a model"),
    ],
)
def test_a_missing_model_is_listed_with_what_to_type(model, message):
    (line,) = Checkpoint(model, what="ranker model").missing()
    assert re.search(message, line)


def test_incomplete_folders_are_listed(tmp_path):
    checkpoint = write(
        tmp_path, **{"model.safetensors.index": {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}}
    )
    (tmp_path / "1.safetensors").touch()
    assert [line.split(" in ")[0].split(": ")[1] for line in checkpoint.missing()] == [
        "no config.json",
        "no 2.safetensors",
    ]


def test_the_fingerprint_follows_content_not_place(tmp_path):
    prints = set()
    for name, content in (("a", {"x": 1}), ("b", {"x": 1}), ("c", {"x": 2})):
        (tmp_path / name).mkdir()
        prints.add((name, write(tmp_path / name, config=content).fingerprint))
    assert len({fingerprint for _, fingerprint in prints}) == 2


def test_a_file_is_hashed_anew_when_it_changes(tmp_path):
    file = tmp_path / "w.bin"
    for content in (b"first", b"other", b"more than that"):
        file.write_bytes(content)
        assert file_sha256(file) == hashlib.sha256(content).hexdigest()
        time.sleep(0.02)


def test_blobs_of_the_hub_cache_are_named_by_their_hash(tmp_path):
    (tmp_path / ("ab" * 32)).write_bytes(b"large")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / ("ab" * 32))
    assert file_sha256(tmp_path / "model.safetensors") == "ab" * 32
