"""The encoder against open_clip's own transforms and towers, and what it refuses."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, write_model
from torch import Tensor

from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.errors import EncoderLoadError, MissingAssetError
from rar_mmdet.memory import TEMPLATE_SETS

TEXTS = ["a photo of a red star", "cup", "cup " * 40, "日本 bow", "", 'a, "b" [c]']


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "plain": write_model(root / "plain"),
        "custom_text": write_model(root / "custom", custom_text=True),
        "siglip": write_model(root / "siglip", siglip=True),
    }


def encoder_of(folder: Path, **settings: object) -> OpenClipEncoder:
    return OpenClipEncoder(model=f"local-dir:{folder}", **settings)  # type: ignore[arg-type]


def crops(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("kind", ["plain", "custom_text", "siglip"])
@torch.inference_mode()
def test_equals_open_clip_itself(folders: dict[str, Path], kind: str) -> None:
    name = f"local-dir:{folders[kind]}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    own = encoder_of(folders[kind], batch_size=2)
    images = crops(5)
    pixels = torch.stack([transform(Image.fromarray(c.permute(1, 2, 0).numpy())) for c in images])
    torch.testing.assert_close(own.encode_images(images), model.encode_image(pixels, normalize=True))
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    torch.testing.assert_close(own.encode_texts(TEXTS), model.encode_text(tokens, normalize=True))
    assert own.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert own.logit_bias == (pytest.approx(-10.0) if kind == "siglip" else None)
    assert (own.dim, own.image_size) == (16, 32)


@torch.inference_mode()
def test_crops_of_another_size_are_resized_as_pil_does(folders: dict[str, Path]) -> None:
    smooth = torch.nn.functional.interpolate(crops(3, 8).float(), 80, mode="bilinear").to(torch.uint8)
    resized = [np.asarray(Image.fromarray(c.permute(1, 2, 0).numpy()).resize((32, 32), Image.BICUBIC)) for c in smooth]
    own = encoder_of(folders["plain"])
    by_pil = own.encode_images(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))
    torch.testing.assert_close(own.encode_images(smooth), by_pil, atol=2e-3, rtol=0)


def test_no_crops_and_no_texts(folders: dict[str, Path]) -> None:
    own = encoder_of(folders["plain"])
    assert own.encode_images(crops(0)).shape == (0, 16)
    assert own.encode_texts([]).shape == (0, 16)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_batches_and_their_order_do_not_matter(folders: dict[str, Path], batch_size: int) -> None:
    whole, parts = encoder_of(folders["plain"]), encoder_of(folders["plain"], batch_size=batch_size)
    torch.testing.assert_close(whole.encode_images(crops(7)), parts.encode_images(crops(7)))
    torch.testing.assert_close(whole.encode_texts(TEXTS), parts.encode_texts(TEXTS))
    torch.testing.assert_close(whole.encode_texts(TEXTS[::-1]).flip(0), parts.encode_texts(TEXTS))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near_and_returns_unit_float32(folders: dict[str, Path], precision: str) -> None:
    exact, low = encoder_of(folders["plain"]), encoder_of(folders["plain"], precision=precision)
    for a, b in [
        (exact.encode_texts(TEXTS), low.encode_texts(TEXTS)),
        (exact.encode_images(crops(4)), low.encode_images(crops(4))),
    ]:
        assert b.dtype == torch.float32
        torch.testing.assert_close(b.norm(dim=1), torch.ones(len(b)))
        assert (a * b).sum(dim=1).min() > 0.995


def test_truncated_texts_are_counted_and_warned_of(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    own = encoder_of(folders["plain"])
    own.encode_texts(["cup " * (CONTEXT - 2), "cup"])
    assert own.num_truncated == 0
    own.encode_texts(["cup " * (CONTEXT - 1), "cup", "x" * 400, "red " * 50])
    assert own.num_truncated == 2
    assert f"2 of 4 texts exceed {CONTEXT} tokens" in caplog.text


def test_copies_and_pickles_without_its_model(folders: dict[str, Path]) -> None:
    own = encoder_of(folders["plain"])
    expected = own.encode_texts(["cup"])
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert twin._loaded is None
        torch.testing.assert_close(twin.encode_texts(["cup"]), expected)
    assert len(pickle.dumps(own)) < 2000
    assert not isinstance(own, torch.nn.Module)


def test_fingerprint_follows_content_not_place(folders: dict[str, Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folders["plain"], tmp_path / "moved"))
    first = encoder_of(folders["plain"]).fingerprint
    assert encoder_of(moved).fingerprint == first
    others = [write_model(tmp_path / "seed", seed=1), write_model(tmp_path / "size", image_size=48)]
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    prints = [encoder_of(folder).fingerprint for folder in [*others, moved]]
    assert len({first, *prints}) == 4


def test_root_logger_keeps_its_handlers(folders: dict[str, Path]) -> None:
    root = logging.getLogger()
    saved, root.handlers[:] = list(root.handlers), []
    try:
        encoder_of(folders["plain"]).load("cpu")
        assert root.handlers == []
    finally:
        root.handlers[:] = saved


def spoil(folder: Path, target: Path, change: str) -> Path:
    shutil.copytree(folder, target)
    weights = target / "open_clip_model.safetensors"
    state = load_file(str(weights))
    if change == "missing":
        del state["visual.proj"]
    elif change == "unexpected":
        state["visual.extra"] = torch.zeros(1)
    elif change == "bias":
        del state["logit_bias"]
    elif change == "resized":
        state["visual.positional_embedding"] = torch.randn(10, 32)
    elif change == "nan":
        state["visual.proj"] = torch.full_like(state["visual.proj"], torch.nan)
    save_file(state, str(weights))
    if change == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5000])
    return target


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        pytest.param("plain", "missing", "could not be loaded.*visual.proj", id="missing-key"),
        pytest.param("plain", "unexpected", "could not be loaded.*visual.extra", id="unexpected-key"),
        pytest.param("plain", "truncated", "could not be loaded", id="truncated-file"),
        pytest.param("plain", "resized", "visual.positional_embedding` is .10, 32., .* expects .5, 32.", id="resized"),
        pytest.param("plain", "nan", "not finite: visual.proj .1 tensors.", id="not-finite"),
        pytest.param("siglip", "bias", "no `logit_bias`", id="siglip-without-bias"),
    ],
)
def test_weights_that_do_not_load_completely_are_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, change: str, message: str
) -> None:
    with pytest.raises(EncoderLoadError, match=f"(?s){message}"):
        encoder_of(spoil(folders[kind], tmp_path / change, change)).load("cpu")


def test_missing_files_are_listed_without_loading(tmp_path: Path, folders: dict[str, Path]) -> None:
    assert encoder_of(folders["plain"]).missing_assets() == []
    (only,) = OpenClipEncoder(model="ViT-B-16", pretrained="openai", cache_dir=str(tmp_path)).missing_assets()
    assert "ViT-B-16, tag openai" in only
    assert str(tmp_path) in only
    assert "hf download timm/vit_base_patch16_clip_224.openai" in only
    hub = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path)).missing_assets()
    assert len(hub) == 2
    assert all("hf download org/name" in line for line in hub)
    (file,) = OpenClipEncoder(model="ViT-B-16", pretrained=str(tmp_path / "w.pt")).missing_assets()
    assert str(tmp_path / "w.pt") in file
    (folder,) = encoder_of(tmp_path / "none").missing_assets()
    assert str(tmp_path / "none") in folder
    bare = Path(shutil.copytree(folders["plain"], tmp_path / "bare"))
    for name in ("open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    assert [line.split(" in ")[0] for line in encoder_of(bare).missing_assets()] == ["weights", "tokenizer files"]
    with pytest.raises(MissingAssetError, match="ViT-B-16, tag openai"):
        OpenClipEncoder(model="ViT-B-16", pretrained="openai", cache_dir=str(tmp_path)).load("cpu")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        pytest.param("ViT-B16", "openai", "no model 'ViT-B16'. Nearest: ViT-B-16", id="model"),
        pytest.param("ViT-B-16", "opanai", "no weights tagged 'opanai'. Tags: openai", id="tag"),
        pytest.param("ViT-B-16", None, "would be random weights. Give a tag (openai", id="no-tag"),
        pytest.param("local-dir:x", "openai", "brings its own weights; drop `pretrained`", id="both"),
    ],
)
def test_names_that_do_not_exist_are_refused(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(EncoderLoadError, match=re.escape(message)):
        OpenClipEncoder(model=model, pretrained=pretrained).missing_assets()


def test_quickgelu_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag that says QuickGELU gets it under a model name that does not ask for it; open_clip only warns."""
    seen: dict[str, object] = {}

    def create_model(name: str, **settings: object) -> None:
        seen.update(settings)
        raise RuntimeError("enough")

    (tmp_path / "w.pt").touch()
    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"url": "x/w.pt", "quick_gelu": True})
    with pytest.raises(EncoderLoadError, match="enough"):
        OpenClipEncoder(model="ViT-B-16", pretrained="openai", cache_dir=str(tmp_path)).load("cpu")
    assert seen["force_quick_gelu"] is True


def test_bad_arguments_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, fp16, bf16"):
        OpenClipEncoder(model="ViT-B-16", pretrained="openai", precision="half")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        OpenClipEncoder(model="ViT-B-16", pretrained="openai", batch_size=0)
    with pytest.raises(ValueError, match=r"crops must be \(R, 3, S, S\) uint8 RGB, got \(2, 3, 32, 32\) torch.float32"):
        encoder_of(folders["plain"]).encode_images(crops(2).float())


def test_template_sets_are_those_published() -> None:
    assert TEMPLATE_SETS["clip7"] == tuple(t("{}") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert TEMPLATE_SETS["clip80"] == tuple(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert len(set(TEMPLATE_SETS["vild81"])) == 81
