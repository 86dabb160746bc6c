"""Grey levels and channels of arrays and tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.pixels import bgr_to_rgb, tensor_to_rgb, to_rgb, to_uint8


def photo(height=12, width=9, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


SAME_PHOTO = [
    pytest.param(lambda p: p, id="uint8"),
    pytest.param(lambda p: p.astype(np.uint16) * 257, id="uint16"),
    pytest.param(lambda p: p.astype(np.uint16) * 256 + 255, id="uint16-lower-bits-are-left-out"),
    pytest.param(lambda p: (p.astype(np.uint16) * 257).astype(">u2"), id="uint16-big-endian"),
    *(pytest.param(lambda p, t=t: p.astype(t), id=t) for t in ("int16", "int32", "int64", "uint32", "uint64")),
    *(pytest.param(lambda p, t=t: p.astype(t), id=f"{t}-0..255") for t in ("float16", "float32", "float64")),
    *(
        pytest.param(lambda p, t=t: (p / 255).astype(t), id=f"{t}-0..1")
        for t in ("float16", "float32", "float64", ">f4")
    ),
    pytest.param(lambda p: p + 0.4, id="rounding-errors"),
    pytest.param(lambda p: p / 255 + 1e-3, id="rounding-errors-0..1"),
]


@pytest.mark.parametrize("change", SAME_PHOTO)
def test_every_dtype_gives_the_same_levels(change):
    np.testing.assert_array_equal(to_rgb(change(photo())), photo())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        *(lambda t, d=d: (t / 255).to(d) for d in (torch.float16, torch.float32, torch.float64)),
        lambda t: t.float(),
        lambda t: t.bfloat16(),  # 8 bits of mantissa: whole numbers up to 256
        lambda t: t.float().requires_grad_(),
        lambda t: t.long(),
        lambda t: torch.from_numpy(t.numpy().astype(np.uint16) * 257),
        lambda t: t.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    ],
)
def test_every_tensor_gives_the_same_levels(change):
    tensor = torch.from_numpy(photo()).permute(2, 0, 1).contiguous()
    assert torch.equal(tensor_to_rgb(change(tensor)), tensor)


def test_bool_is_black_and_white():
    mask = np.array([[True, False]])
    np.testing.assert_array_equal(to_rgb(mask), [[[255] * 3, [0] * 3]])
    assert tensor_to_rgb(torch.from_numpy(mask)).tolist() == [[[255, 0]]] * 3


def test_black_is_black_in_every_dtype():
    for dtype in (bool, np.uint8, np.uint16, np.int64, np.float32):
        assert not to_rgb(np.zeros((4, 5, 3), dtype)).any()


@pytest.mark.parametrize("channels", [None, 1, 2], ids=["grey", "one-channel", "grey-and-alpha"])
def test_grey_has_three_equal_channels(channels):
    grey = photo()[..., 0]
    given_ = grey if channels is None else np.stack([grey, 255 - grey][:channels], axis=2)
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(to_rgb(given_), expected)
    np.testing.assert_array_equal(bgr_to_rgb(given_), expected)
    as_tensor = torch.from_numpy(given_ if channels is None else given_.transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(tensor_to_rgb(as_tensor).permute(1, 2, 0), expected)


def test_alpha_is_dropped():
    rgba = photo(channels=4)
    np.testing.assert_array_equal(to_rgb(rgba), rgba[..., :3])
    np.testing.assert_array_equal(bgr_to_rgb(rgba), rgba[..., [2, 1, 0]])
    np.testing.assert_array_equal(
        tensor_to_rgb(torch.from_numpy(rgba.transpose(2, 0, 1).copy())), rgba.transpose(2, 0, 1)[:3]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_of_mmdetection_are_levels_however_dark(dtype):
    """`LoadImageFromFile(to_float32=True)` of a nearly black photo holds no value above 1."""
    dark = (photo() > 200).astype(np.uint8)
    np.testing.assert_array_equal(bgr_to_rgb(dark.astype(dtype)), dark[..., ::-1])
    np.testing.assert_array_equal(to_rgb(dark.astype(dtype)), dark * 255)  # else the largest value tells
    np.testing.assert_array_equal(to_rgb(dark.astype(dtype), float_max=255), dark)


def test_a_photo_is_not_copied():
    pixels = photo()
    assert np.shares_memory(to_rgb(pixels), pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    assert tensor_to_rgb(tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    "view",
    [
        lambda p: p[:, ::-1],
        lambda p: p[::-1],
        lambda p: p[::2, ::3],
        lambda p: np.asfortranarray(p),
        lambda p: np.swapaxes(p, 0, 1),
        lambda p: p[..., ::-1],
        lambda p: np.broadcast_to(p[:1, :1], p.shape),
    ],
)
def test_any_strides(view):
    pixels = view(photo())
    pixels.flags.writeable = False
    result = to_rgb(pixels)
    np.testing.assert_array_equal(result, np.array(pixels))
    assert result.flags.c_contiguous


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        pytest.param(np.zeros((3, 40, 50), np.uint8), r"got an array \(3, 40, 50\).*transpose\(1, 2, 0\)", id="chw"),
        pytest.param(np.zeros((1, 40, 50, 3), np.uint8), "one image at a time", id="batch"),
        pytest.param(np.zeros(500, np.uint8), "bytes of a file: give image.tobytes", id="bytes"),
        pytest.param(np.zeros((40, 50, 7), np.uint8), r"must be \(H, W, 3\) RGB.*got an array \(40, 50, 7\)$", id="7"),
        pytest.param(np.array(5), r"got an array \(\)", id="scalar"),
        pytest.param(np.zeros((0, 5, 3), np.uint8), r"has no pixels: its shape is \(0, 5, 3\)", id="no-height"),
        pytest.param(np.zeros((5, 0), np.float32), r"has no pixels: its shape is \(5, 0\)", id="no-width"),
        pytest.param(np.zeros((5, 5, 3), complex), "holds complex128 values; expected uint8", id="complex"),
        pytest.param(np.full((5, 5, 3), None), "holds object values", id="object"),
        pytest.param(np.full((5, 5, 3), "a"), "holds <U1 values", id="text"),
        pytest.param(np.full((5, 5, 3), np.nan), "holds NaN; expected numbers in 0..1 or 0..255", id="nan"),
        pytest.param(np.full((5, 5, 3), np.inf), r"holds float64 values in inf..inf; expected floats", id="inf"),
        pytest.param(np.full((5, 5, 3), -0.3), "in -0.3..-0.3; expected floats.*mean and a standard", id="normalised"),
        pytest.param(np.full((5, 5, 3), 300.0), "in 300..300; expected floats in 0..1 or 0..255", id="too-large"),
        pytest.param(np.full((5, 5, 3), 1.2), "0..1 that overshoots.*Clip it", id="overshoot"),
        pytest.param(np.full((5, 5, 3), 256, np.int64), "int64 values in 256..256; integers must be", id="large-int"),
        pytest.param(np.full((5, 5, 3), -1, np.int8), "int8 values in -1..-1", id="negative-int"),
        pytest.param(
            np.full((5, 5, 3), 200, np.uint16), r"16-bit values none.*above 200.*astype\(np.uint8\)", id="dark-16"
        ),
    ],
)
def test_what_is_no_photo_is_refused(pixels, match):
    with pytest.raises(ImageReadError, match=f"photo 7.*{match}"):
        to_rgb(pixels, "photo 7")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        pytest.param(
            torch.zeros(40, 50, 3), r"got a tensor \(40, 50, 3\).*permute\(2, 0, 1\), or image.numpy", id="hwc"
        ),
        pytest.param(torch.zeros(40, 50, 4, dtype=torch.uint8), r"looks like \(H, W, 4\)", id="hwc-rgba"),
        pytest.param(torch.zeros(2, 3, 40, 50), "one image at a time", id="batch"),
        pytest.param(torch.zeros(7, 40, 50), r"must be \(3, H, W\) RGB.*got a tensor \(7, 40, 50\)$", id="7-channels"),
        pytest.param(torch.zeros(3, 0, 50), r"has no pixels: its shape is \(3, 0, 50\)", id="no-height"),
        pytest.param(torch.full((3, 4, 5), torch.nan), "holds NaN", id="nan"),
        pytest.param(torch.full((3, 4, 5), -0.3), "expected floats in 0..1", id="normalised"),
        pytest.param(torch.full((3, 4, 5), 300), "int64 values in 300..300", id="large-int"),
    ],
)
def test_what_is_no_photo_is_refused_as_a_tensor_too(tensor, match):
    with pytest.raises(ImageReadError, match=f"photo 7.*{match}"):
        tensor_to_rgb(tensor, "photo 7")


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-3, 300, width=32), high=st.floats(-3, 300, width=32), dtype=st.sampled_from(["float32", "float64"])
)
def test_arrays_and_tensors_agree_on_every_range(low, high, dtype):
    values = np.linspace(low, high, 24, dtype=dtype).reshape(2, 4, 3)
    try:
        expected = to_uint8(values, "it")
    except ImageReadError as error:
        expected = str(error)
    try:
        found = tensor_to_rgb(torch.from_numpy(values).permute(2, 0, 1), "it").permute(1, 2, 0).numpy()
    except ImageReadError as error:
        found = str(error).replace("torch.", "")
    if isinstance(expected, str):
        assert found.split(";")[1:] == expected.split(";")[1:]
    else:
        np.testing.assert_array_equal(found, expected)
