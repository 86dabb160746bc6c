"""Crops against PIL's resize on photographs, and what must hold for every box."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from rar_mmdet.errors import ConfigError, ImageReadError, InvalidBoxError
from rar_mmdet.regions import (
    AreaScale,
    BlurBackground,
    BlurOutsideMask,
    FixedScale,
    GreyBackground,
    NoBackground,
    RegionCropper,
    SmoothAreaScale,
)

BACKENDS = ("cpu", "torch")
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
TOLERANCE = 2  # grey levels


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(name="astronaut"):
    return getattr(data, name)()


def as_array(crops):
    return crops.permute(0, 2, 3, 1).cpu().numpy().astype(int)


def pil_crop(image, box, size):
    return np.asarray(Image.fromarray(image).resize((size, size), box=tuple(box), resample=Image.BICUBIC)).astype(int)


def square_boxes(image, side, count, seed):
    height, width = image.shape[:2]
    corners = np.random.default_rng(seed).uniform(0, 1, (count, 2)) * (width - side, height - side)
    corners[0], corners[1] = 0, (width - side, height - side)  # both corners of the photo, where taps are cut off
    return np.concatenate([corners, corners + side], axis=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("side", [3.7, 21.0, 64.0, 131.3, 290.5], ids=lambda side: f"{side}px")
def test_equals_pil_resize_inside_the_photo(backend, name, side):
    image = photo(name)
    boxes = square_boxes(image, side, 4, seed=0)
    crops = as_array(RegionCropper(size=64, backend=backend).crop(image, boxes))
    expected = np.stack([pil_crop(image, box, 64) for box in boxes])
    assert np.abs(crops - expected).max() <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "largest"), [("retina", TOLERANCE), ("coffee", 3), ("hubble_deep_field", 5)])
def test_equals_pil_resize_where_halved_photos_are_read(backend, name, largest):
    """But for single pixels at hard edges: PIL saturates between its passes, which no linear pyramid can repeat."""
    image = photo(name)[:869, :871]
    image = image[: image.shape[0] - 1 + image.shape[0] % 2]  # odd sides
    whole = min(image.shape[:2])
    boxes = np.concatenate([square_boxes(image, side, 3, seed=1) for side in (0.6 * whole, whole)])
    size = int(0.6 * whole / 8)  # the smaller windows are read from the photo halved once
    crops = as_array(RegionCropper(size=size, backend=backend).crop(image, boxes))
    error = np.abs(crops - np.stack([pil_crop(image, box, size) for box in boxes]))
    assert error.max() <= largest
    assert (error > TOLERANCE).mean() < 1e-3


@pytest.mark.parametrize("window", ["square", "pad", "warp", "cover"])
@pytest.mark.parametrize("fill", ["mean", "edge", "reflect"])
def test_backends_agree(window, fill):
    image = photo()
    boxes = np.array(
        [
            [10, 20, 60, 50],
            [-30, -20, 50, 60],
            [480, 480, 600, 520],
            [0, 0, 512, 512],
            [100, 100, 101, 101],
            [200, 3, 205, 400],
            [7.3, 9.2, 300.1, 200.7],
            [511.5, 200, 700, 300],
        ]
    )
    settings_ = {"size": 72, "scale": AreaScale(), "window": window, "fill": fill, "background": BlurBackground(6)}
    by_cpu = RegionCropper(**settings_, backend="cpu").crop(image, boxes)
    by_torch = RegionCropper(**settings_, backend="torch", chunk_mib=2).crop(image, boxes)
    assert (by_cpu.int() - by_torch.int()).abs().max() <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_pixel_box_of_the_crops_size_is_the_photo(backend):
    image = photo()
    crop = RegionCropper(size=64, backend=backend).crop(image, [[37, 101, 101, 165]])
    np.testing.assert_array_equal(as_array(crop)[0], image[101:165, 37:101])


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_then_paste_gives_the_photo_back(backend):
    image = photo("coffee")
    pasted = np.zeros_like(image)
    corners = [(x, y) for y in range(0, 400, 50) for x in range(0, 600, 50)]
    crops = RegionCropper(size=50, backend=backend).crop(image, [[x, y, x + 50, y + 50] for x, y in corners])
    for (x, y), crop in zip(corners, as_array(crops), strict=True):
        pasted[y : y + 50, x : x + 50] = crop
    np.testing.assert_array_equal(pasted, image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_a_pixel_of_the_box_is_half_a_pixel_of_the_crop(backend):
    """Moving a box by half a pixel is moving the photo under it: here by whole pixels of a photo twice as large."""
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))
    image = np.repeat(ramp[:, :, None], 3, axis=2)
    cropper = RegionCropper(size=20, backend=backend)
    at, moved = cropper.crop(image, [[10, 10, 30, 30], [10.5, 10, 30.5, 30]]).int()
    assert torch.equal(moved - at, torch.full_like(at, 2))  # half of the 4 grey levels per pixel


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fill", ["mean", "edge", "reflect"])
def test_shift_of_photo_and_box_changes_nothing(backend, fill):
    image = photo("chelsea")
    shifted = np.roll(image, (8, 8), axis=(0, 1))
    cropper = RegionCropper(size=40, scale=FixedScale(1.4), fill=fill, backend=backend)
    box = np.array([[60.2, 50.7, 131.9, 160.4]])
    assert torch.equal(cropper.crop(image, box), cropper.crop(shifted, box + 8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", ["square", "pad", "warp"])
@pytest.mark.parametrize("fill", ["mean", "edge", "reflect"])
def test_mirrored_photo_gives_the_mirrored_crop(backend, window, fill):
    image = photo("rocket")
    width = image.shape[1]
    boxes = np.array([[30.3, 40.1, 95.2, 160.9], [-40, 10, 30, 60], [400, 300, 640, 430]], dtype=float)
    mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    cropper = RegionCropper(size=48, scale=FixedScale(1.5), window=window, fill=fill, backend=backend)
    difference = cropper.crop(image, boxes).int() - cropper.crop(image[:, ::-1], mirrored).flip(3).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_equals_one_at_a_time(backend):
    image = photo()
    rng = np.random.default_rng(3)
    low = rng.uniform(-20, 480, (16, 2))
    boxes = np.concatenate([low, low + np.exp(rng.uniform(np.log(25), np.log(400), (16, 2)))], axis=1)
    cropper = RegionCropper(size=32, scale=AreaScale(), background=BlurBackground(4), backend=backend, chunk_mib=1)
    one_by_one = torch.cat([cropper.crop(image, boxes[r : r + 1]) for r in range(len(boxes))])
    assert (cropper.crop(image, boxes).int() - one_by_one.int()).abs().max() <= (1 if backend == "torch" else 0)


@pytest.mark.parametrize("count", [15, 16, 41])
def test_threads_cut_the_same_crops(count, monkeypatch):
    """The largest windows need halved photos, which threads share."""
    image = photo()
    low = np.random.default_rng(3).uniform(0, 200, (count, 2))
    boxes = np.concatenate([low, low + np.linspace(20, 300, count)[:, None]], axis=1)
    cropper = RegionCropper(size=16, scale=AreaScale(), background=BlurBackground(4))
    alone = cropper.crop(image, boxes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for _ in range(5):
        assert torch.equal(cropper.crop(image, boxes), alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)], ids=["list", "array", "tensor"])
def test_no_boxes_give_no_crops(backend, boxes):
    crops = RegionCropper(size=24, backend=backend).crop(photo(), boxes)
    assert crops.shape == (0, 3, 24, 24)
    assert crops.dtype == torch.uint8


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pixel_and_whole_photo(backend):
    image = photo("coffee")
    one, whole = as_array(
        RegionCropper(size=16, window="warp", backend=backend).crop(image, [[7, 9, 8, 10], [0, 0, 600, 400]])
    )
    assert np.abs(one[7:9, 7:9] - image[9, 7].astype(int)).max() <= 20  # the middle of that pixel
    assert np.abs(whole - pil_crop(image, (0, 0, 600, 400), 16)).max() <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_outside_is_filled(backend):
    image = np.full((40, 60, 3), 200, dtype=np.uint8)
    image[:, :20] = 80  # mean 160
    boxes = [[-20.0, 0.0, 20.0, 40.0]]

    def left_and_right(fill):
        crop = as_array(RegionCropper(size=40, fill=fill, backend=backend).crop(image, boxes))[0]
        return crop[:, :20], crop[:, 20:]

    for fill, outside in (("mean", 160), ("edge", 80), ("reflect", 80)):
        left, right = left_and_right(fill)
        assert (left == outside).all(), fill
        assert (right[:, :18] == 80).all(), fill


@pytest.mark.parametrize("backend", BACKENDS)
def test_fill_covers_a_fraction_of_a_pixel(backend):
    """Half of the output column is photo (value 100), half fill (mean 100 * 1 + ...): the blend moves smoothly."""
    image = np.full((40, 40, 3), 250, dtype=np.uint8)
    image[:, :20] = 50  # mean 150
    crop = as_array(RegionCropper(size=40, backend=backend).crop(image, [[-10.5, 0.0, 29.5, 40.0]]))[0]
    assert (crop[:, :10] == 150).all()
    assert (crop[:, 10] == 100).all()
    assert (crop[:, 11:28] == 50).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sliver_of_photo_thinner_than_an_output_pixel(backend):
    image = photo()
    crops = RegionCropper(size=16, backend=backend, fill="edge").crop(image, [[511.5, 0, 1011.5, 500]])
    assert np.isfinite(as_array(crops)).all()
    assert crops.float().std() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("error")
def test_window_beside_the_photo_is_all_fill(backend):
    """A scale below 1 can leave no photo in the window of a box that reaches in."""
    image = np.full((40, 40, 3), 90, dtype=np.uint8)
    crop = RegionCropper(size=8, scale=FixedScale(0.3), backend=backend).crop(image, [[-100.0, 0.0, 10.0, 40.0]])
    assert (crop == 90).all()


def test_padded_window_keeps_the_aspect():
    image = np.full((100, 100, 3), 10, dtype=np.uint8)
    image[:50] = 90  # mean 50
    crop = as_array(RegionCropper(size=40, window="pad").crop(image, [[10, 60, 50, 80]]))[0]
    assert (crop[:10] == 50).all()
    assert (crop[10:30] == 10).all()
    assert (crop[30:] == 50).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_box_dtypes(backend, dtype):
    image = photo()
    boxes = torch.tensor([[16, 32, 80, 96]], dtype=dtype)
    assert torch.equal(RegionCropper(size=32, backend=backend).crop(image, boxes), expected_crop(image, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_kinds(backend):
    image = photo()
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    floats = tensor.float() / 255
    for kind in (tensor, floats.half(), floats, floats.requires_grad_(), image / 255.0, image[:, ::-1][:, ::-1]):
        crop = RegionCropper(size=32, backend=backend).crop(kind, [[16, 32, 80, 96]])
        assert torch.equal(crop, expected_crop(image, backend))
    for kind in (tensor.float(), image.astype(np.float16), image.astype(np.int32), Image.fromarray(image)):
        assert torch.equal(RegionCropper(size=32, backend=backend).crop(kind, [[16, 32, 80, 96]]), crop)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_photos_that_are_views_or_may_not_be_written(backend):
    image = photo()
    read_only = image.copy()
    read_only.flags.writeable = False
    spread = np.zeros((1024, 1024, 6), np.uint8)
    spread[::2, ::2, ::2] = image
    mirrored = np.array(image[:, ::-1])[:, ::-1]
    for kind in (read_only, spread[::2, ::2, ::2], np.asfortranarray(image), image[::-1][::-1], mirrored):
        crop = RegionCropper(size=32, backend=backend).crop(kind, [[16, 32, 80, 96]])
        assert torch.equal(crop, expected_crop(image, backend))


def test_one_cropper_in_eight_threads():
    cropper = RegionCropper(size=48, scale=AreaScale(), background=BlurBackground(5, feather=2))
    boxes = [[16, 32, 80, 96], [-30, -20, 50, 60], [0, 0, 512, 512]]
    expected = cropper.crop(photo(), boxes)
    with ThreadPoolExecutor(8) as threads:
        assert all(
            torch.equal(crops, expected) for crops in threads.map(lambda _: cropper.crop(photo(), boxes), range(32))
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_grey_and_rgba_photos(backend):
    image = photo()
    grey = np.repeat(image[..., :1], 3, axis=2)
    rgba = np.dstack([image, image[..., 0]])
    cropper, box = RegionCropper(size=32, backend=backend), [[16, 32, 80, 96]]
    assert torch.equal(cropper.crop(image[..., 0], box), cropper.crop(grey, box))
    assert torch.equal(cropper.crop(torch.from_numpy(image[..., 0].copy()), box), cropper.crop(grey, box))
    assert torch.equal(cropper.crop(rgba, box), cropper.crop(image, box))


def expected_crop(image, backend):
    return RegionCropper(size=32, backend=backend).crop(image, [[16.0, 32.0, 80.0, 96.0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("background", [None, BlurBackground(4), BlurBackground(4, feather=3)])
def test_autocast_changes_nothing(dtype, background):
    cropper = RegionCropper(size=32, scale=FixedScale(1.7), background=background, backend="torch")
    boxes = [[16, 32, 80, 96], [-30, -20, 50, 60], [0, 0, 512, 512]]
    plain = cropper.crop(photo(), boxes)
    with torch.autocast("cpu", dtype):
        assert torch.equal(cropper.crop(photo(), boxes), plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hw", [(1, 30), (30, 1), (1, 1)])
def test_photo_of_one_pixel_flipped(backend, hw):
    image = photo()[: hw[0], : hw[1]][::-1, ::-1]
    crop = RegionCropper(size=4, backend=backend).crop(image, [[0, 0, hw[1], hw[0]]])
    np.testing.assert_array_equal(crop, RegionCropper(size=4).crop(image.copy(), [[0, 0, hw[1], hw[0]]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_leaves_the_photo_alone(backend):
    image = photo()
    before = image.copy()
    RegionCropper(size=16, background=BlurBackground(), backend=backend).crop(image, [[-10, -10, 600, 600]])
    np.testing.assert_array_equal(image, before)


coordinate = st.floats(-300, 900, allow_nan=False, width=32)
side = st.floats(0.0625, 700, allow_nan=False, width=32)


@settings(max_examples=40, deadline=None)
@given(
    x=coordinate,
    y=coordinate,
    width=side,
    height=side,
    scale=st.floats(0.3, 4),
    window=st.sampled_from(["square", "pad", "warp"]),
)
def test_any_box_is_cropped_or_named(x, y, width, height, scale, window):
    image = photo("coffee")[:200, :300]
    cropper = RegionCropper(size=24, scale=FixedScale(scale), window=window, background=BlurBackground(3))
    box = [[x, y, x + width, y + height]]
    if min(x, y) >= -0.1 and max(x + width, y + height) <= 1.1:
        with pytest.raises(InvalidBoxError, match="normalised"):
            cropper.crop(image, box)
    elif x >= 300 or y >= 200 or x + width <= 0 or y + height <= 0:
        with pytest.raises(InvalidBoxError, match="entirely outside"):
            cropper.crop(image, box)
    else:
        assert cropper.crop(image, box).shape == (1, 3, 24, 24)


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(2, 500), y=st.floats(0, 300), width=st.floats(1, 100), height=st.floats(1, 100), scale=st.floats(1, 3)
)
def test_window_is_centred_on_the_box(x, y, width, height, scale):
    """On a photo whose colours are its coordinates, the mean of a crop is the centre of its box."""
    rows, cols = np.mgrid[0:400, 0:600]
    image = np.stack([cols * 255 / 600, rows * 255 / 400, cols * 0], axis=2)
    reach = scale * max(width, height) / 2
    centre = np.array([x + width / 2, y + height / 2])
    if (centre < reach).any() or (centre + reach > (600, 400)).any():
        return
    rounded = np.rint(image).astype(np.uint8)
    crop = as_array(RegionCropper(size=16, scale=FixedScale(scale)).crop(rounded, [[x, y, x + width, y + height]]))
    found = crop[0].mean(axis=(0, 1))[:2] * (600 / 255, 400 / 255) + 0.5
    assert np.abs(found - centre).max() <= 1.5  # the colours are rounded to 2.4 px


def test_settings_survive_pickling_and_another_size():
    cropper = RegionCropper(size=32, scale=AreaScale(), background=BlurBackground(5, feather=2), window="pad")
    boxes = [[10, 20, 90, 70]]
    copied = pickle.loads(pickle.dumps(cropper))
    assert torch.equal(copied.crop(photo(), boxes), cropper.crop(photo(), boxes))
    assert cropper.with_size(48).crop(photo(), boxes).shape == (1, 3, 48, 48)
    assert cropper.size == 32
    with pytest.raises(ConfigError, match="size=0"):
        cropper.with_size(0)


def test_with_size_scales_what_is_in_output_pixels():
    cropper = RegionCropper(size=224, scale=AreaScale(), background=BlurBackground(10, feather=4), fill="edge")
    assert cropper.with_size(224) == cropper
    assert cropper.with_size(448) == replace(cropper, size=448, background=BlurBackground(20, feather=8))
    assert cropper.with_size(56).with_size(224) == cropper
    masked = replace(cropper, background=BlurOutsideMask(10, feather=4))
    assert masked.with_size(112).background == BlurOutsideMask(5, feather=2)
    grey = replace(cropper, background=GreyBackground(90, feather=4))
    assert grey.with_size(112).background == GreyBackground(90, feather=2)
    assert RegionCropper(size=224).with_size(100) == RegionCropper(size=100)


def test_a_cropper_without_a_size_takes_that_of_its_encoder():
    cropper = RegionCropper(size=None, background=BlurBackground(7))
    with pytest.raises(ConfigError, match=r"size=None\).*give size=224, or use cropper.with_size\(encoder.image_size"):
        cropper.crop(photo(), [[10, 20, 90, 70]])
    assert cropper.with_size(336) == RegionCropper(
        size=336, background=BlurBackground(7)
    )  # σ is in pixels of that side
    assert "size=None" in repr(cropper)


SETTINGS = {
    "size": 64,
    "scale": SmoothAreaScale(2.0, 1.5, 1.1, bounds=(900, 6400)),
    "background": BlurOutsideMask(5, feather=2),
    "window": "pad",
    "fill": "edge",
    "reducing_gap": 2,
}
OTHER = {
    "size": 65,
    "scale": AreaScale(2.0, 1.5, 1.1, bounds=(900, 6400)),
    "background": BlurBackground(5, feather=2),
    "window": "warp",
    "fill": "mean",
    "reducing_gap": 4,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_croppers_are_equal_when_every_setting_is(name):
    cropper, same = RegionCropper(**SETTINGS), RegionCropper(**copy.deepcopy(SETTINGS))
    assert (cropper, hash(cropper), repr(cropper)) == (same, hash(same), repr(same))
    assert pickle.loads(pickle.dumps(cropper)) == cropper
    assert eval(repr(cropper)) == cropper
    other = RegionCropper(**{**SETTINGS, name: OTHER[name]})
    assert other != cropper
    assert repr(other) != repr(cropper)


def test_what_changes_no_pixel_is_no_difference():
    """Backends agree within 2 grey levels, and chunks are about memory alone."""
    cropper = RegionCropper(**SETTINGS)
    other = RegionCropper(**SETTINGS, backend="torch", chunk_mib=8)
    assert (cropper, hash(cropper), repr(cropper)) == (other, hash(other), repr(other))
    assert (other.backend, other.chunk_mib) == ("torch", 8)


def test_croppers_and_policies_are_frozen():
    for policy, name in [(RegionCropper(), "size"), (AreaScale(), "small"), (BlurBackground(), "sigma")]:
        with pytest.raises(FrozenInstanceError):
            setattr(policy, name, 3)


def test_none_is_the_default_as_configs_write_it():
    cropper = RegionCropper(scale=None, background=None)
    assert cropper == RegionCropper(scale=FixedScale(1), background=NoBackground())
    assert cropper == RegionCropper()
    assert cropper.size is None


@pytest.mark.parametrize(
    ("image", "match"),
    [
        pytest.param(np.zeros((3, 20, 20), np.uint8), r"transpose\(1, 2, 0\)", id="channels-first-array"),
        pytest.param(torch.zeros(20, 20, 3, dtype=torch.uint8), r"permute\(2, 0, 1\)", id="channels-last-tensor"),
        pytest.param(np.full((20, 20, 3), 300.0), "300..300; expected floats in 0..1 or 0..255", id="floats-above-255"),
        pytest.param(np.full((20, 20, 3), 400), "int64 values in 400..400", id="integers-above-255"),
        pytest.param(torch.full((3, 20, 20), torch.nan), "NaN", id="nan"),
        pytest.param(np.zeros((20, 0, 3), np.uint8), "no pixels", id="no-pixels"),
        pytest.param("gone.jpg", "Cannot open image gone.jpg", id="path"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_images_are_refused(image, match, backend):
    with pytest.raises(ImageReadError, match=match):
        RegionCropper(size=8, backend=backend).crop(image, [[2, 2, 9, 9]])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size=0 must be a whole number of pixels"),
        ({"size": 33.5}, "size=33.5"),
        ({"size": "224"}, "size='224'"),
        ({"size": float("nan")}, "size=nan"),
        ({"size": float("inf")}, "size=inf"),
        ({"window": "round"}, "window='round' is not one of square, pad, warp"),
        ({"fill": "black"}, "fill='black'"),
        ({"backend": "gpu"}, "backend='gpu'"),
        ({"chunk_mib": 0}, "chunk_mib=0"),
        ({"reducing_gap": 0.5}, "reducing_gap=0.5"),
    ],
)
def test_wrong_settings_are_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        RegionCropper(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    image, boxes = photo(), [[10, 20, 300, 250], [-5, -5, 40, 40], [0, 0, 512, 512]]
    cropper = RegionCropper(size=64, scale=AreaScale(), background=BlurBackground(5))
    on_cuda = cropper.crop(torch.from_numpy(image).permute(2, 0, 1).cuda(), boxes)
    assert on_cuda.device.type == "cuda"
    assert (on_cuda.cpu().int() - cropper.crop(image, boxes).int()).abs().max() <= TOLERANCE
