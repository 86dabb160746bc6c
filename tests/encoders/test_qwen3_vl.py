"""Qwen3-VL-Embedding against transformers' own model, asked one chat at a time by hand."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen3_vl import TINY_QWEN3_ROPE, TINY_QWEN3_VISION
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F  # noqa: N812
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from rar_mmdet.components import build_component
from rar_mmdet.encoders import Encoder, Qwen3VLEmbeddingEncoder
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError
from rar_mmdet.testing import make_image

CLOSE = {"atol": 2e-5, "rtol": 0}
SPECIALS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["a red cup", "star", "the blue bow of a circle, and a drink", "cup"]
# Qwen's form of a chat.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt(content: str, instruction: str = "Represent the user's input.") -> str:
    """What the template makes, by hand."""
    system = f"<|im_start|>system\n{instruction}<|im_end|>\n"
    return f"{system}<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete random checkpoint in the published layout, with the language model's head tied as there."""
    folder = tmp_path_factory.mktemp("qwen3_vl") / "model"
    vocab = {token: row for row, token in enumerate(["<pad>", *SPECIALS, *pre_tokenizers.ByteLevel.alphabet()])}
    letters = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=SPECIALS
    )
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        vision_config={**TINY_QWEN3_VISION},
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.3,
            "rope_parameters": {**TINY_QWEN3_ROPE},
        },
        tie_word_embeddings=True,
        **dict(zip(names, (1, 2, 3, 4), strict=True)),
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16), tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return Qwen3VLEmbeddingEncoder(model=str(folder), device="cpu", image_size=96)


@pytest.fixture(scope="module")
def reference(folder):
    """The unit vector of one chat, of a text and perhaps a picture whose sides are multiples of 32."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    processor = Qwen3VLProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def vector(text, picture=None):
        inputs = {}
        if picture is not None:  # the authors resize it themselves
            inputs = dict(processor.image_processor(picture, do_resize=False, return_tensors="pt"))
            text = text.replace("<|image_pad|>", "<|image_pad|>" * (picture.shape[0] // 32) * (picture.shape[1] // 32))
        ids = processor.tokenizer(text, return_tensors="pt").input_ids
        kinds = (ids == processor.image_token_id).int()
        hidden = model.model(input_ids=ids, mm_token_type_ids=kinds, **inputs).last_hidden_state
        return F.normalize(hidden[0, -1], dim=0)

    return vector


def crops_of(*seeds):
    return torch.stack([torch.from_numpy(make_image(96, 96, seed)).permute(2, 0, 1) for seed in seeds])


class TestVectors:
    def test_texts_are_those_of_their_chats_alone(self, encoder, reference):
        expected = torch.stack([reference(prompt(text)) for text in TEXTS])
        torch.testing.assert_close(encoder.encode_texts(TEXTS), expected, **CLOSE)

    def test_crops_are_those_of_their_chats_alone(self, encoder, reference):
        content = "<|vision_start|><|image_pad|><|vision_end|>"
        expected = torch.stack([reference(prompt(content), make_image(96, 96, seed)) for seed in (1, 2, 3)])
        torch.testing.assert_close(encoder.encode_images(crops_of(1, 2, 3)), expected, **CLOSE)

    def test_the_instruction_is_said(self, folder, encoder, reference):
        other = Qwen3VLEmbeddingEncoder(model=str(folder), device="cpu", instruction=" Name the object. ")
        expected = reference(prompt("a red cup", "Name the object."))
        torch.testing.assert_close(other.encode_texts(["a red cup"])[0], expected, **CLOSE)
        assert other.fingerprint != encoder.fingerprint

    def test_batches_and_order_do_not_matter(self, folder, encoder):
        small = Qwen3VLEmbeddingEncoder(model=str(folder), device="cpu", image_size=96, batch_size=2)
        torch.testing.assert_close(small.encode_texts(TEXTS[::-1]).flip(0), encoder.encode_texts(TEXTS), **CLOSE)
        crops = crops_of(1, 2, 3)
        torch.testing.assert_close(small.encode_images(crops.flip(0)).flip(0), encoder.encode_images(crops), **CLOSE)
        assert small.fingerprint == encoder.fingerprint

    def test_none(self, encoder):
        none = torch.zeros((0, 3, 96, 96), dtype=torch.uint8)
        assert encoder.encode_images(none).shape == encoder.encode_texts([]).shape == (0, 32)

    def test_crops_of_other_sides_are_resized(self, encoder):
        vectors = encoder.encode_images(torch.from_numpy(make_image(50, 50)).permute(2, 0, 1)[None])
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1))

    def test_half_precision_is_close(self, folder, encoder):
        half = Qwen3VLEmbeddingEncoder(model=str(folder), device="cpu", image_size=96, precision="bf16")
        for encode in (lambda e: e.encode_texts(TEXTS), lambda e: e.encode_images(crops_of(1, 2))):
            assert (encode(half) * encode(encoder)).sum(dim=1).min() > 0.999
        assert half.fingerprint != encoder.fingerprint


class TestLoading:
    def test_is_an_encoder_of_crops(self, folder, encoder):
        built = build_component({"type": "Qwen3VLEmbeddingEncoder", "model": str(folder)}, "encoder")
        assert isinstance(built, Qwen3VLEmbeddingEncoder)
        assert (built.image_size, built.dim, built.logit_scale) == (256, 32, 50)
        own: Encoder = pickle.loads(pickle.dumps(encoder))
        assert own.fingerprint == encoder.fingerprint

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"instruction": " "}, "instruction must be a sentence"), ({"image_size": 0}, "image_size must be")],
    )
    def test_values_of_no_use_are_refused(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            Qwen3VLEmbeddingEncoder(model="x", **arguments)

    def test_what_is_missing_is_listed(self, folder, tmp_path):
        assert "hf download Qwen/none" in Qwen3VLEmbeddingEncoder(model="Qwen/none").missing_assets()[0]
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        with pytest.raises(MissingAssetError, match=r"no preprocessor_config\.json(.|\n)*no tokenizer\.json"):
            Qwen3VLEmbeddingEncoder(model=str(tmp_path)).load("cpu")

    def test_what_does_not_fit_is_refused(self, folder, tmp_path):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "chat_template.jinja").unlink()
        encoder = Qwen3VLEmbeddingEncoder(model=str(tmp_path))
        with pytest.raises(EncoderLoadError, match="has no chat template"):
            encoder.load("cpu")
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.language_model.norm.weight")
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderLoadError, match=r"language_model\.norm\.weight"):
            encoder.load("cpu")
        content = json.loads((folder / "config.json").read_text()) | {"model_type": "siglip"}
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(EncoderLoadError, match="holds a model of type 'siglip'; Qwen3VLEmbeddingEncoder knows"):
            Qwen3VLEmbeddingEncoder(model=str(tmp_path)).load("cpu")
