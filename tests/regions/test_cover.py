"""A whole photo as one box: the window `cover` is open_clip's own preprocessing."""

import importlib.util
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from skimage import data

from rar_mmdet.encoders import OpenClipEncoder
from rar_mmdet.regions import FixedScale, RegionCropper

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "demo" / "weights" / "clip"
BACKENDS = ("cpu", "torch")
PHOTOS = {
    "square": data.astronaut,
    "wide": data.coffee,  # 600 x 400
    "tall": lambda: data.rocket().transpose(1, 0, 2),
    "odd": lambda: data.chelsea()[:299, :451],
    "strip": lambda: data.coffee()[:90, :587],
    "small": lambda: data.chelsea()[100:131, 80:121],
    "large": lambda: np.tile(data.retina(), (1, 2, 1)),
}


def whole(image):
    return [[0, 0, image.shape[1], image.shape[0]]]


def own_preprocessing(size, **kwargs):
    return open_clip.transform.image_transform(
        size, is_train=False, resize_mode="shortest", interpolation="bicubic", **kwargs
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", PHOTOS)
def test_equals_short_side_then_centre_crop(name, size, backend):
    image = np.ascontiguousarray(PHOTOS[name]())
    crop = RegionCropper(size=size, window="cover", backend=backend).crop(image, whole(image))[0].numpy()
    transform = own_preprocessing(size, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(Image.fromarray(image)).numpy() * 255).round()
    error = np.abs(crop - expected)
    assert (error > 2).mean() < 5e-3  # single pixels at hard edges, where PIL saturates between its passes
    assert error.mean() < 0.5


def tiny_vit(folder):
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "encoders" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.write_model(folder, image_size=64)


@pytest.fixture(params=["demo", "vit"])
def folder(request, tmp_path):
    if request.param == "vit":
        return tiny_vit(tmp_path / "vit")
    if not (WEIGHTS / "model.safetensors").is_file():
        pytest.skip("the demo's encoder is not there")
    return WEIGHTS


@torch.inference_mode()
def test_vectors_are_those_of_open_clips_preprocessing(folder):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    encoder = OpenClipEncoder(model=f"local-dir:{folder}", device="cpu")
    cropper = RegionCropper(window="cover").with_size(encoder.image_size)
    config = open_clip.get_model_preprocess_cfg(model)
    transform = own_preprocessing(encoder.image_size, mean=config["mean"], std=config["std"])
    photos = [np.ascontiguousarray(make()) for make in PHOTOS.values()]
    ours = encoder.encode_images(torch.cat([cropper.crop(photo, whole(photo)) for photo in photos]))
    pixels = torch.stack([transform(Image.fromarray(photo)) for photo in photos])
    assert (ours * model.encode_image(pixels, normalize=True)).sum(dim=1).min() > 0.9999


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_box_is_covered_like_a_photo_of_its_own(backend):
    image = data.coffee()
    x1, y1, x2, y2 = 100, 50, 400, 250
    alone = np.ascontiguousarray(image[y1:y2, x1:x2])
    cropper = RegionCropper(size=52, window="cover", backend=backend)
    of_box = cropper.crop(image, [[x1, y1, x2, y2]])[0].int()
    of_photo = cropper.crop(alone, whole(alone))[0].int()
    assert (of_box - of_photo)[:, 2:-2].abs().max() <= 2  # filters reach over the ends of the box's shorter side
    square = RegionCropper(size=52, backend=backend).crop(image, [[150, 50, 350, 250]])[0].int()
    assert (of_box - square).abs().max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_larger_scale_shows_more_and_fills_what_is_missing(backend):
    image = np.full((40, 60, 3), 200, dtype=np.uint8)
    image[:20] = 100  # mean 150
    crop = RegionCropper(size=20, window="cover", scale=FixedScale(2), backend=backend).crop(image, whole(image))[0]
    # 20 output pixels show 80 of the photo's; it is 60 wide and 40 high.
    assert (crop[:, :5] == 150).all()
    assert (crop[:, 15:] == 150).all()
    assert (crop[:, :, :2] == 150).all()
    assert (crop[:, 5:8, 3:17].int() - 100).abs().max() <= 1
    assert (crop[:, 12:15, 3:17].int() - 200).abs().max() <= 1
