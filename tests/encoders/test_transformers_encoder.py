"""The encoder against transformers' own preprocessing and towers, and what it refuses."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil

import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file
from skimage.transform import resize
from torch.nn import functional as F  # noqa: N812
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers_world import KINDS, write_model

from rar_mmdet.components import build_component
from rar_mmdet.encoders import TransformersEncoder
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError

CLOSE = {"atol": 1e-5, "rtol": 0}
TEXTS = ["a photo of a red star", "cup", "the blue bow .", "drink"]
WITH_TEXTS = [kind for kind in KINDS if kind not in ("dinov2", "dinov3")]
WITHOUT_MASK = ("siglip", "siglip2-fixed", "siglip2-naflex")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def photographs():
    """(4, 3, 48, 48) uint8: crops of photographs, of another size than the models take."""
    crops = [resize(image()[:256, 100:356], (48, 48), anti_aliasing=True, preserve_range=True) for image in (
        skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket,
    )]  # fmt: skip
    return torch.stack([torch.from_numpy(crop).round().to(torch.uint8).permute(2, 0, 1) for crop in crops])


def encoder_of(folder, **settings):
    return TransformersEncoder(model=str(folder), device="cpu", **settings)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_images_equal_transformers_own(folders, photographs, kind):
    model, processor = AutoModel.from_pretrained(folders[kind]), AutoImageProcessor.from_pretrained(folders[kind])
    inputs = processor(images=[crop.permute(1, 2, 0).numpy() for crop in photographs], return_tensors="pt")
    out = model(**inputs) if kind not in WITH_TEXTS else model.get_image_features(**inputs)
    encoder = encoder_of(folders[kind])
    found = encoder.encode_images(photographs)
    torch.testing.assert_close(found, F.normalize(out.pooler_output, dim=1), **CLOSE)
    assert found.shape == (4, encoder.dim)


@pytest.mark.parametrize("kind", WITH_TEXTS)
@torch.inference_mode()
def test_texts_equal_transformers_own(folders, kind):
    model, tokenizer = AutoModel.from_pretrained(folders[kind]), AutoTokenizer.from_pretrained(folders[kind])
    padding = "max_length" if kind in WITHOUT_MASK else True
    inputs = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    if kind in WITHOUT_MASK:
        inputs = {"input_ids": inputs["input_ids"]}
    expected = F.normalize(model.get_text_features(**inputs).pooler_output, dim=1)
    encoder = encoder_of(folders[kind])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), expected, **CLOSE)
    scale = 1 / model.temperature if kind == "tipsv2" else model.logit_scale.exp()
    assert encoder.logit_scale == pytest.approx(scale.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_order_do_not_matter(folders, photographs, kind):
    whole, parts = encoder_of(folders[kind]), encoder_of(folders[kind], batch_size=3)
    together = whole.encode_images(photographs)
    torch.testing.assert_close(parts.encode_images(photographs), together, **CLOSE)
    torch.testing.assert_close(whole.encode_images(photographs.flip(0)), together.flip(0), **CLOSE)
    if kind in WITH_TEXTS:
        vectors = whole.encode_texts(TEXTS)
        torch.testing.assert_close(parts.encode_texts(TEXTS), vectors, **CLOSE)
        torch.testing.assert_close(whole.encode_texts(TEXTS[::-1]), vectors.flip(0), **CLOSE)


@pytest.mark.parametrize("kind", ["clip", "altclip", "tipsv2"])
def test_texts_of_as_many_tokens_share_a_batch(folders, kind):
    encoder = encoder_of(folders[kind], batch_size=2).load()
    shapes = []
    encoder._ready()[0].model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs.get("input_ids", args[0] if args else None).shape)),
        with_kwargs=True,
    )
    texts = ["red star red", "cup", "red star red", "cup"] if kind == "altclip" else ["abc abc", "ab", "abc abc", "ab"]
    vectors = encoder.encode_texts(texts)
    assert [shape[0] for shape in shapes] == [2, 2]
    assert shapes[0][1] < shapes[1][1]  # no padding in either
    assert vectors[0].equal(vectors[2])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close(folders, photographs, kind):
    exact, half = encoder_of(folders[kind]), encoder_of(folders[kind], precision="bf16")
    pairs = [(exact.encode_images(photographs), half.encode_images(photographs))]
    if kind in WITH_TEXTS:
        pairs.append((exact.encode_texts(TEXTS), half.encode_texts(TEXTS)))
    for a, b in pairs:
        assert b.dtype == torch.float32
        assert (a * b).sum(1).min() > 0.999
    assert exact.fingerprint != half.fingerprint


@pytest.mark.parametrize(
    ("kind", "dim", "size", "length"),
    [
        ("clip", 24, 32, 16),
        ("siglip", 32, 32, 16),
        ("siglip2-fixed", 32, 32, 16),
        ("siglip2-naflex", 32, 32, 16),
        ("chinese_clip", 24, 32, 16),
        ("metaclip_2", 24, 32, 16),
        ("altclip", 24, 32, 16),
        ("tipsv2", 32, 32, 16),
        ("dinov2", 32, 36, 0),
        ("dinov3", 32, 32, 0),
    ],
)
def test_sizes_come_from_the_folder(folders, kind, dim, size, length):
    encoder = encoder_of(folders[kind])
    assert (encoder.dim, encoder.image_size, encoder.text_length) == (dim, size, length)
    assert encoder.encode_images(torch.zeros((0, 3, 32, 32), dtype=torch.uint8)).shape == (0, dim)
    if length:
        assert encoder.encode_texts([]).shape == (0, dim)


def test_texts_of_siglip2_are_lower_case(folders):
    for kind in ("siglip2-fixed", "siglip2-naflex", "siglip"):
        encoder = encoder_of(folders[kind])
        torch.testing.assert_close(encoder.encode_texts(["A Red CUP"]), encoder.encode_texts(["a red cup"]), **CLOSE)


def test_punctuation_is_the_tokenizers_business(folders):
    """SigLIP 1's takes it out; SigLIP 2's leaves it."""
    for kind, same in (("siglip", True), ("siglip2-fixed", False)):
        plain, dotted = encoder_of(folders[kind]).encode_texts(["a red cup", "a red cup."])
        assert torch.allclose(plain, dotted, **CLOSE) is same


def test_texts_of_siglip_are_padded_whatever_the_folder_says(folders, tmp_path):
    folder = tmp_path / "left"
    shutil.copytree(folders["siglip2-fixed"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    expected = encoder_of(folders["siglip2-fixed"]).encode_texts(TEXTS)
    torch.testing.assert_close(encoder_of(folder).encode_texts(TEXTS), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["clip", "siglip2-fixed", "chinese_clip"])
def test_cut_texts_are_warned_of_once(folders, caplog, kind):
    encoder = encoder_of(folders[kind])
    with caplog.at_level(logging.WARNING, logger="rar_mmdet"):
        encoder.encode_texts(["cup"])
        assert not caplog.records
        encoder.encode_texts(["cup " * 30, "star"])
        encoder.encode_texts(["cup " * 30])
    assert [record.getMessage()[:35] for record in caplog.records] == ["1 texts exceed 16 tokens and are cu"]


def test_a_model_without_texts(folders):
    encoder = encoder_of(folders["dinov2"])
    assert encoder.logit_scale == pytest.approx(14.2857, abs=1e-3)
    with pytest.raises(ConfigError, match="no text tower; use a memory of exemplars"):
        encoder.encode_texts(["a cup"])


def test_copies_and_pickles_as_its_arguments(folders, photographs):
    encoder = encoder_of(folders["clip"]).load()
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other._model is None
        assert other.fingerprint == encoder.fingerprint
        torch.testing.assert_close(other.encode_images(photographs), encoder.encode_images(photographs), **CLOSE)


def test_fingerprint_follows_content_and_not_place(folders, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folders["siglip"], moved)
    before = encoder_of(folders["siglip"]).fingerprint
    assert encoder_of(moved).fingerprint == before
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.5, 0.5]}))
    assert encoder_of(moved).fingerprint != before
    assert write_model(tmp_path / "seed", "siglip", seed=1)
    assert encoder_of(tmp_path / "seed").fingerprint != before


def test_is_built_from_a_config(folders):
    encoder = build_component({"type": "TransformersEncoder", "model": str(folders["clip"])}, "encoder")
    assert isinstance(encoder, TransformersEncoder)


class TestRefusals:
    def test_a_hub_id_that_is_not_here(self):
        encoder = encoder_of("google/siglip2-no-such-model")
        assert "hf download google/siglip2-no-such-model" in encoder.missing_assets()[0]
        with pytest.raises(MissingAssetError, match="hf download google/siglip2-no-such-model"):
            encoder.load()

    @pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
    def test_an_incomplete_folder(self, folders, tmp_path, name):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        for gone in (name, *(("vocab.json",) if name == "tokenizer.json" else ())):
            (folder / gone).unlink(missing_ok=True)
        with pytest.raises(MissingAssetError, match=name):
            encoder_of(folder).load()

    def test_pickled_weights_alone_are_not_read(self, folders, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(MissingAssetError, match=r"no model\.safetensors"):
            encoder_of(folder).load()

    @pytest.mark.parametrize(
        ("family", "hint"),
        [
            ("fgclip2", "FGCLIP2Encoder loads it"),
            ("qwen3_vl", "Qwen3VLEmbeddingEncoder loads it"),
            ("llava", "OpenClipEncoder"),
        ],
    )
    def test_another_family(self, folders, tmp_path, family, hint):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": family}))
        with pytest.raises(EncoderLoadError, match=f"of type '{family}'.*{hint}"):
            encoder_of(folder).load()

    def test_weights_that_lack_a_tensor(self, folders, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        weights = load_file(folder / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderLoadError, match=r"visual_projection\.weight"):
            encoder_of(folder).load()

    def test_weights_that_are_not_finite(self, folders, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        weights = load_file(folder / "model.safetensors")
        weights["visual_projection.weight"][0, 0] = torch.nan
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderLoadError, match=r"not finite: visual_projection\.weight"):
            encoder_of(folder).load()

    def test_damaged_weights(self, folders, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(folders["clip"], folder)
        (folder / "model.safetensors").write_bytes(b"no such file")
        with pytest.raises(EncoderLoadError, match="damaged|could not be loaded"):
            encoder_of(folder).load()

    def test_what_are_no_crops(self, folders):
        with pytest.raises(ConfigError, match="crops must be"):
            encoder_of(folders["clip"]).encode_images(torch.zeros(2, 3, 32, 32))
