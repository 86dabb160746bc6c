"""Every preset's pixels and tokens against its reference code path, on photographs.

A preset of open_clip gets a folder in open_clip's layout with its own preprocessing, text settings and image size, and
towers made small; open_clip then makes its own transform and tokenizer of that folder. Published vocabularies of
transformers are not at hand, so those families take a small one of the same class.
"""

from __future__ import annotations

import json

import open_clip
import pytest
import skimage.data
import torch
from fgclip2_world import write_folder
from PIL import Image
from safetensors.torch import save_file
from test_presets import NAME, OF_OPEN_CLIP, build, small
from transformers import AutoTokenizer
from transformers import Siglip2ImageProcessorPil as PilProcessor
from transformers_world import gemma_tokenizer

from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.encoders.presets import find_preset, read_presets
from rar_mmdet.regions import RegionCropper

TEXTS = ["A photo of a Cup.", "red star", "the blue_bow, of  a drink!"]
OF_FG_CLIP = [preset for preset in read_presets() if preset.family == "fg-clip2"]


def photographs() -> list[Image.Image]:
    return [Image.fromarray(photo()) for photo in (skimage.data.chelsea, skimage.data.coffee)]


def squares(side: int) -> torch.Tensor:
    """(2, 3, S, S) uint8: what a cropper gives of photographs."""
    cropper = RegionCropper(size=side)
    return torch.cat([cropper.crop(photo, [[60.0, 20.0, 300.0, 260.0]]) for photo in photographs()])


def folder_of(preset, folder):
    """The preset with towers of one narrow layer."""
    config = small(preset)
    weights = open_clip.get_pretrained_cfg(preset.arguments["model"], preset.arguments["pretrained"])
    config["vision_cfg"] |= {"image_size": preset.image_size, "patch_size": preset.image_size // 2}
    if "hf_tokenizer_name" in config["text_cfg"]:
        config["text_cfg"] |= {"hf_tokenizer_name": "local", "vocab_size": 64}
        gemma_tokenizer().save_pretrained(folder)
    keys = ("mean", "std", "interpolation", "resize_mode")
    content = {"model_cfg": config, "preprocess_cfg": {key: weights[key] for key in keys}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    tensors = {name: tensor.contiguous() for name, tensor in build(config).state_dict().items()}
    save_file(tensors, str(folder / "open_clip_model.safetensors"))
    return f"local-dir:{folder}"


@pytest.mark.parametrize(argvalues=OF_OPEN_CLIP, **NAME)
@torch.inference_mode()
def test_pixels_and_tokens_are_open_clips(preset, tmp_path):
    name = folder_of(preset, tmp_path)
    model, transform = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    encoder = OpenClipEncoder(model=name, device="cpu").load()
    assert encoder.image_size == preset.image_size
    seen: dict[str, torch.Tensor] = {}
    own, token_table = encoder._ready()[0].model, []
    own.visual.register_forward_pre_hook(lambda _, args: seen.update(pixels=args[0]))
    table = own.text.token_embedding if hasattr(own, "text") else own.token_embedding
    table.register_forward_pre_hook(lambda _, args: token_table.append(args[0]))

    crops = squares(preset.image_size)
    vectors = encoder.encode_images(crops)
    expected = torch.stack([transform(Image.fromarray(crop.permute(1, 2, 0).numpy())) for crop in crops])
    torch.testing.assert_close(seen["pixels"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors, model.eval().encode_image(expected, normalize=True), atol=1e-5, rtol=0)

    found = encoder.encode_texts(TEXTS)
    expected = tokenizer(TEXTS)
    assert expected.shape == (3, preset.text_length)
    assert encoder._ready()[0].tokenizer(TEXTS).equal(expected)
    if encoder._ready()[0].text_trim is None:  # as they are; others leave padding out, and share beginnings
        assert token_table[0].equal(expected)
    assert preset.padding != "full" or token_table[0].shape[1] == preset.text_length
    torch.testing.assert_close(found, model.encode_text(expected, normalize=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", ["cover", "warp"])
def test_whole_photographs_are_framed_as_open_clip_does(window):
    """ "shortest" is the window `cover`, "squash" is `warp`; the cropper's filter is bicubic and keeps fractions."""
    mode = {"cover": "shortest", "warp": "squash"}[window]
    transform = open_clip.image_transform(224, False, (0, 0, 0), (1, 1, 1), resize_mode=mode, interpolation="bicubic")
    for photo in photographs():
        width, height = photo.size
        (crop,) = RegionCropper(size=224, window=window).crop(photo, [[0.0, 0.0, float(width), float(height)]])
        difference = (crop.float() - 255 * transform(photo)).abs()
        assert difference.mean() < (0.1 if window == "warp" else 4)  # open_clip rounds the longer side to whole pixels


@pytest.mark.parametrize(argvalues=OF_FG_CLIP, **NAME)
@torch.inference_mode()
def test_pixels_and_tokens_are_those_of_fg_clips_processor(preset, tmp_path):
    folder = write_folder(tmp_path)
    encoder = find_preset(preset.name).build(model=str(folder), device="cpu", image_size=preset.image_size)
    crops = squares(preset.image_size)
    found = encoder._patches(crops)
    processor = PilProcessor(patch_size=16, max_num_patches=256)
    expected = processor(images=[Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in crops], return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
    assert found["spatial_shapes"].equal(expected["spatial_shapes"])
    tokens: list[torch.Tensor] = []
    encoder._ready()[0].model.text_model.embeddings.token_embedding.register_forward_pre_hook(
        lambda _, args: tokens.append(args[0])
    )
    encoder.encode_texts(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = tokenizer([text.lower() for text in TEXTS], add_special_tokens=False).input_ids
    length = preset.text_length
    assert tokens[0].tolist() == [[*ids, 1, *[0] * (length - len(ids) - 1)] for ids in plain]
