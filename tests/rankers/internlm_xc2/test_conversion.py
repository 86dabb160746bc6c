"""`.bin` shards -> safetensors: the same tensors bit for bit, resumable, and nothing damaged passes."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from rar_mmdet.rankers.internlm_xc2 import conversion

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "ixc2_a"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    import sentencepiece

    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat b dog c"] * 9),
        model_prefix=str(prefix),
        vocab_size=270,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture
def source(tmp_path, tokenizer_file):
    """The golden weights in bf16 as two `.bin` shards, with a stray buffer."""
    folder = tmp_path / "published"
    folder.mkdir()
    state = {name: tensor.bfloat16() for name, tensor in load_file(GOLDEN / "model.safetensors").items()}
    state["vit.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[:40], names[40:]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copy(GOLDEN / "config.json", folder)
    shutil.copy(tokenizer_file, folder / "tokenizer.model")
    return folder


def run(*args):
    return conversion.main([str(a) for a in args])


def read(folder):
    state = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
    return state


@pytest.mark.parametrize("shard_gb", [2, 1e-4], ids=["file-per-shard", "many-files"])
def test_same_tensors_bit_for_bit(source, tmp_path, shard_gb):
    out = tmp_path / "out"
    assert run(source, "--out", out, "--shard-gb", shard_gb) == 0
    got = read(out)
    expected = {name: tensor.bfloat16() for name, tensor in load_file(GOLDEN / "model.safetensors").items()}
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == torch.bfloat16
        assert got[name].equal(tensor), name
    assert not list(out.glob("*.part*"))
    assert run("--verify", out) == 0


def test_the_folder_loads_as_the_source_does(source, tmp_path):
    out = tmp_path / "out"
    run(source, "--out", out)
    a, b = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (source, out))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert p.equal(q), name
    p, q = (AutoProcessor.from_pretrained(folder) for folder in (source, out))
    text = "<s><ImageHere>[UNUSED_TOKEN_146]user\na cat  and 鸟[UNUSED_TOKEN_145]\n"
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert p(images=[[image]], text=text)["input_ids"] == q(images=[[image]], text=text)["input_ids"]


def test_goes_on_where_it_stopped(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    real, calls = conversion.convert_piece, []

    def dies_at_the_third(piece, folder):
        calls.append(piece.target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(piece, folder)

    monkeypatch.setattr(conversion, "convert_piece", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(source, "--out", out, "--shard-gb", 1e-4)
    first = calls.copy()
    calls[:] = ["no third call"] * 3
    assert run(source, "--out", out, "--shard-gb", 1e-4) == 0
    assert not set(first[:2]) & set(calls[3:])
    assert first[2] in calls
    assert run("--verify", out) == 0


def test_a_file_changed_since_is_written_again(source, tmp_path):
    out = tmp_path / "out"
    run(source, "--out", out)
    file = next(out.glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run("--verify", out) == 2
    assert run(source, "--out", out) == 0
    assert file.read_bytes() == data


def test_expected_hashes(source, tmp_path, capsys):
    sums = tmp_path / "sums"
    lines = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in source.glob("*.bin")}
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in lines.items()))
    assert run(source, "--out", tmp_path / "out", "--sha256", sums) == 0
    sums.write_text("".join(f"{'0' * 64}  {name}\n" for name in lines))
    assert run(source, "--out", tmp_path / "out2", "--sha256", sums) == 2
    assert "damaged or another version" in capsys.readouterr().err


def damage(kind, folder):
    shard = folder / "pytorch_model-00002-of-00002.bin"
    if kind == "missing":
        shard.unlink()
    elif kind == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif kind == "pickle":
        torch.save({"model.norm.weight": torch.nn.Linear(1, 1)}, shard)
    elif kind == "tensor lost":
        state = torch.load(shard, weights_only=True)
        state.popitem()
        torch.save(state, shard)
    elif kind == "tensor twice":
        state = torch.load(shard, weights_only=True)
        torch.save({**state, "model.layers.0.attention.wo.weight": torch.ones(1)}, shard)
    elif kind == "no tokenizer":
        (folder / "tokenizer.model").unlink()
    elif kind == "other generation":
        (folder / "ixc_utils.py").write_text("def HD_transform(img): ...")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "lacks 1 of 2 shards"),
        ("truncated", "truncated or damaged"),
        ("pickle", "is no plain state dict"),
        ("tensor lost", "disagree about 1 tensors"),
        ("tensor twice", "is in pytorch_model-00001-of-00002.bin and in"),
        ("no tokenizer", "lacks tokenizer.model"),
        ("other generation", "4KHD"),
    ],
)
def test_damaged_source(source, tmp_path, capsys, kind, message):
    damage(kind, source)
    assert run(source, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "rar_manifest.json").exists()


def test_other_misuse(source, tmp_path, capsys, monkeypatch):
    assert run(source, "--out", source) == 2
    assert "another folder" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run(source, "--out", out) == 0
    assert run(out, "--out", tmp_path / "again") == 2
    assert "holds safetensors already" in capsys.readouterr().err
    assert run("--verify", source) == 2
    assert "holds no rar_manifest.json" in capsys.readouterr().err
    (source / "pytorch_model-00001-of-00002.bin").touch()
    torch.save({"x": torch.ones(1)}, source / "pytorch_model-00001-of-00002.bin")
    assert run(source, "--out", out) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(SystemExit):
        run(source)


def test_full_disk_is_noticed_first(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert run(source, "--out", tmp_path / "out") == 2
    assert "0.0 GB free" in capsys.readouterr().err
