"""`rar-mmdet encoders`."""

from __future__ import annotations

import json

import pytest
from transformers_world import write_model

from rar_mmdet import cli
from rar_mmdet.encoders.presets import read_presets


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub cache; model files put into it are found."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    return tmp_path


def put_into_cache(hub, repo, kind):
    """A model in the layout of the hub's cache."""
    commit = "0" * 40
    root = hub / f"models--{repo.replace('/', '--')}"
    write_model(root / "snapshots" / commit, kind)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)


def test_table_names_every_preset_and_what_to_type(hub, capsys):
    assert cli.main(["encoders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["name", "dim", "size", "tokens", "licence", "here"]
    assert [line.split()[0] for line in lines[1:] if line][: len(read_presets())] == [p.name for p in read_presets()]
    by_name = {line.split()[0]: line for line in lines if line}
    assert by_name["pe-core-l14-336"].split()[1:6] == ["1024", "336", "32", "apache-2.0", "no"]
    assert "hf download timm/PE-Core-L-14-336 open_clip_model.safetensors" in by_name["pe-core-l14-336"]
    assert "hf download qihoo360/fg-clip2-base" in by_name["fg-clip2-base"]
    assert by_name["altclip-l14"].split()[3] == "-"
    # Weights and tokenizer are two commands.
    assert by_name["siglip2-so400m-384"].count("hf download timm/ViT-SO400M-16-SigLIP2-384") == 2


def test_what_is_here_is_said(hub, capsys):
    put_into_cache(hub, "google/siglip2-base-patch16-naflex", "siglip2-naflex")
    assert cli.main(["encoders", "siglip2-b16-naflex", "openai-clip-b16"]) == 0
    out = capsys.readouterr().out
    by_name = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert by_name["siglip2-b16-naflex"][5:] == ["yes"]
    assert by_name["openai-clip-b16"][5] == "no"
    assert "openai-clip-b16, missing:" in out


def test_json(hub, capsys):
    assert cli.main(["encoders", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [preset.name for preset in read_presets()]
    row = next(row for row in rows if row["name"] == "dfn5b-h14-378")
    assert (row["dim"], row["resize"], row["quick_gelu"], row["here"]) == (1024, "squash", True, False)
    assert "apple/DFN5B-CLIP-ViT-H-14-378" in row["missing"][0]


def test_an_unknown_name(capsys):
    assert cli.main(["encoders", "siglip2-so400"]) == 2
    assert "nearest: siglip2-so400m" in capsys.readouterr().err
