"""The encoder against open_clip's own transforms and towers, and what it refuses."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import shlex
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub.cli.hf import app as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, write_model
from torch import Tensor

from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError
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


def test_cut_texts_are_warned_of_once(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    own = encoder_of(folders["plain"])
    own.encode_texts(["cup " * (CONTEXT - 2), "cup"])
    assert "exceed" not in caplog.text
    for _ in range(2):
        own.encode_texts(["cup " * (CONTEXT - 1), "cup", "x" * 400, "red " * 50])
    assert caplog.text.count(f"2 of 4 texts exceed {CONTEXT} tokens and are cut") == 1


def test_copies_and_pickles_without_its_model(folders: dict[str, Path]) -> None:
    own = encoder_of(folders["plain"])
    expected = own.encode_texts(["cup"])
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert twin._model is None
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


def test_fingerprint_names_the_precision(folders: dict[str, Path]) -> None:
    prints = [encoder_of(folders["plain"], precision=p).fingerprint for p in ("fp32", "bf16", "fp16")]
    assert [fingerprint.rpartition(":")[2] for fingerprint in prints] == ["fp32", "bf16", "fp16"]
    assert len({fingerprint.rpartition(":")[0] for fingerprint in prints}) == 1
    unsaid = encoder_of(folders["plain"], device="cpu")
    assert unsaid.fingerprint == unsaid.load("cpu").fingerprint == prints[0]


def test_the_tokenizer_is_part_of_the_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders["plain"], tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"red"', '"crimson"'))
    assert encoder_of(other).fingerprint != encoder_of(folders["plain"]).fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_autocast_around_it_changes_nothing(folders: dict[str, Path], dtype: torch.dtype) -> None:
    own = encoder_of(folders["plain"])
    images, texts = own.encode_images(crops(4)), own.encode_texts(TEXTS)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(own.encode_images(crops(4)), images)
        assert torch.equal(own.encode_texts(TEXTS), texts)


def test_eight_threads_load_once_and_get_what_one_gets(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = encoder_of(folders["plain"])
    images, texts = alone.encode_images(crops(3)), alone.encode_texts(TEXTS)
    loads = []
    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: loads.append(1) or create(*a, **k))
    own, start = encoder_of(folders["plain"]), threading.Barrier(8)

    def work(_: int) -> tuple[Tensor, Tensor]:
        start.wait()
        return own.encode_images(crops(3)), own.encode_texts(TEXTS)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert len(loads) == 1
    for own_images, own_texts in results:
        torch.testing.assert_close(own_images, images)
        torch.testing.assert_close(own_texts, texts)


def into_hub_cache(cache: Path, repo: str, folder: Path, *names: str) -> Path:
    """The files of a folder where huggingface_hub keeps those of a repository."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("0" * 40)
    for name in names:
        shutil.copy(folder / name, snapshot / name)
    return snapshot


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MODEL = ("open_clip_config.json", "open_clip_model.safetensors")


def with_text_config(source: Path, target: Path, **text: object) -> Path:
    folder = Path(shutil.copytree(source, target))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(text)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("somebody reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_a_model_of_the_hub_loads_from_the_cache_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_text_config(folders["plain"], tmp_path / "folder", hf_tokenizer_name="org/words")
    snapshot = into_hub_cache(tmp_path / "hub", "org/name", folder, *MODEL)
    own = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path / "hub"))
    (line,) = own.missing_assets()
    assert line.startswith("hf-hub:org/name: its tokenizer, org/words: looked for in")
    assert "hf download org/words" in line
    with pytest.raises(MissingAssetError, match="its tokenizer, org/words"):
        own.load("cpu")
    words = into_hub_cache(tmp_path / "hub", "org/words", folder, *TOKENIZER)
    assert own.missing_assets() == []
    torch.testing.assert_close(own.encode_texts(TEXTS), encoder_of(folders["plain"]).encode_texts(TEXTS))
    torch.testing.assert_close(own.encode_images(crops(2)), encoder_of(folders["plain"]).encode_images(crops(2)))
    first = own.fingerprint
    (words / "tokenizer.json").write_text((words / "tokenizer.json").read_text().replace('"red"', '"crimson"'))
    assert OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path / "hub")).fingerprint != first
    (snapshot / "open_clip_model.safetensors").unlink()
    (line,) = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path / "hub")).missing_assets()
    assert line.startswith("weights in")
    assert "hf download org/name" in line


def test_what_is_to_be_typed_fetches_every_file_of_a_tokenizer(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line as `hf` itself reads it: a pattern without its own --include would be a file to it."""
    folder = with_text_config(folders["plain"], tmp_path / "folder", hf_tokenizer_name="org/words")
    into_hub_cache(tmp_path / "hub", "org/name", folder, *MODEL)
    (line,) = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path / "hub")).missing_assets()
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        "huggingface_hub.cli.download.snapshot_download", lambda **given: asked.update(given) or "there"
    )
    command = re.search(r"hf (download .*?)   \(", line).group(1)
    hf(args=shlex.split(command), standalone_mode=False)
    assert asked["repo_id"] == "org/words"
    assert asked["allow_patterns"] == ["*.json", "*.txt", "*.model"]


@pytest.mark.usefixtures("_no_network")
def test_text_towers_of_transformers_need_their_config(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = with_text_config(folders["plain"], tmp_path / "folder", hf_model_name="org/tower")
    own = encoder_of(folder, cache_dir=str(tmp_path / "hub"))
    (line,) = own.missing_assets()
    assert line.startswith("local-dir: its text tower's config, org/tower: looked for in")
    assert "hf download org/tower config.json" in line


@pytest.mark.usefixtures("_no_network")
def test_siglip_lists_its_tokenizer(tmp_path: Path) -> None:
    lines = OpenClipEncoder(model="ViT-B-16-SigLIP", pretrained="webli", cache_dir=str(tmp_path)).missing_assets()
    assert [line.split(":")[0] for line in lines] == [
        "weights of open_clip model ViT-B-16-SigLIP, tag webli",
        "ViT-B-16-SigLIP/webli",
    ]
    assert "its tokenizer, timm/ViT-B-16-SigLIP: looked for in" in lines[1]


def test_downloads_are_made_only_where_allowed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_text_config(folders["plain"], tmp_path / "folder", hf_tokenizer_name="org/words")
    hub, asked = tmp_path / "hub", []

    def get(repo: str, filename: str | None = None, cache_dir: str | None = None, **_: object) -> None:
        asked.append((repo, filename))
        names = TOKENIZER if repo == "org/words" else MODEL
        into_hub_cache(Path(str(cache_dir)), repo, folder, *names)

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", get)
    monkeypatch.setattr("huggingface_hub.snapshot_download", get)
    with pytest.raises(MissingAssetError, match="open_clip_config.json, weights and tokenizer"):
        OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(hub)).load("cpu")
    assert asked == []
    own = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(hub), allow_download=True)
    assert own.missing_assets() == []
    torch.testing.assert_close(own.encode_texts(TEXTS), encoder_of(folders["plain"]).encode_texts(TEXTS))
    assert asked == [("org/name", "open_clip_config.json"), ("org/name", None), ("org/words", None)]


def test_a_download_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", fail)
    with pytest.raises(EncoderLoadError, match="hf-hub:org/name .None. could not be downloaded: no route to host"):
        OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path), allow_download=True).load("cpu")


@torch.inference_mode()
def test_a_tags_preprocessing_is_kept(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a tag are loaded as a file; mean, deviation and interpolation are the tag's all the same."""
    config = json.loads((folders["plain"] / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = "org/words"
    into_hub_cache(tmp_path, "org/words", folders["plain"], *TOKENIZER)
    into_hub_cache(tmp_path, "org/weights", folders["plain"], *MODEL)
    tag = {"hf_hub": "org/weights/", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    for place in ("open_clip", "open_clip.factory"):
        monkeypatch.setattr(f"{place}.get_model_config", lambda name: copy.deepcopy(config))
        monkeypatch.setattr(
            f"{place}.get_pretrained_cfg", lambda model, tag_name: dict(tag) if tag_name == "own" else {}
        )
    own = OpenClipEncoder(model="ViT-B-16", pretrained="own", cache_dir=str(tmp_path))
    state, _ = own._ready()
    assert state.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert state.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert state.interpolation == "bilinear"
    torch.testing.assert_close(own.encode_texts(TEXTS), encoder_of(folders["plain"]).encode_texts(TEXTS))


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"model_cfg": ', "open_clip_config.json is not JSON, or not complete", id="cut-short"),
        pytest.param(b"[]", "open_clip_config.json: no `model_cfg`; expected the file", id="list"),
        pytest.param(b'{"model_cfg": 3}', "no `model_cfg`", id="number"),
        pytest.param(b"\xff\xfe", "open_clip_config.json is not JSON", id="no-text"),
    ],
)
def test_damaged_model_configs_are_named(
    folders: dict[str, Path], tmp_path: Path, content: bytes, message: str
) -> None:
    folder = Path(shutil.copytree(folders["plain"], tmp_path / "m"))
    (folder / "open_clip_config.json").write_bytes(content)
    with pytest.raises(EncoderLoadError, match=message):
        encoder_of(folder).missing_assets()


def test_missing_files_are_listed_without_loading(tmp_path: Path, folders: dict[str, Path]) -> None:
    assert encoder_of(folders["plain"]).missing_assets() == []
    (only,) = OpenClipEncoder(model="ViT-B-16", pretrained="openai", cache_dir=str(tmp_path)).missing_assets()
    assert "ViT-B-16, tag openai" in only
    assert str(tmp_path) in only
    assert "hf download timm/vit_base_patch16_clip_224.openai" in only
    (hub,) = OpenClipEncoder(model="hf-hub:org/name", cache_dir=str(tmp_path)).missing_assets()
    assert hub.startswith("hf-hub:org/name: open_clip_config.json, weights and tokenizer, looked for in")
    assert "hf download org/name" in hub
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
    for wrong in (lambda: encoder_of(folders["plain"], device="gpu"), lambda: encoder_of(folders["plain"]).load("gpu")):
        with pytest.raises(ConfigError, match="device='gpu' is no device of torch; write 'cpu', 'cuda' or 'cuda:1'"):
            wrong()
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        OpenClipEncoder(model="ViT-B-16", pretrained="openai", batch_size=0)
    with pytest.raises(ValueError, match=r"crops must be \(R, 3, S, S\) uint8 RGB, got \(2, 3, 32, 32\) torch.float32"):
        encoder_of(folders["plain"]).encode_images(crops(2).float())


def test_template_sets_are_those_published() -> None:
    assert TEMPLATE_SETS["clip7"] == tuple(t("{}") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert TEMPLATE_SETS["clip80"] == tuple(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert len(set(TEMPLATE_SETS["vild81"])) == 81


def test_pixels_by_imagenet_s_statistics(folders: dict[str, Path]) -> None:
    plain = encoder_of(folders["plain"])
    other = OpenClipEncoder(model=plain.model, device="cpu", statistics="imagenet")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    state, _ = other._ready()
    shown = crops(2)
    pixels = (shown.permute(0, 2, 3, 1) / 255 - mean) / std
    assert torch.allclose(other._preprocess(shown, state).permute(0, 2, 3, 1), pixels, atol=1e-5)
    assert other.fingerprint == f"{plain.fingerprint}:imagenet"
    assert not torch.allclose(other.encode_images(shown), plain.encode_images(shown), atol=1e-3)
    with pytest.raises(ConfigError, match="statistics must be 'imagenet'"):
        OpenClipEncoder(model=plain.model, statistics="clip")
