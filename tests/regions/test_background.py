"""Blur against the Gaussian's definition, and what must stay sharp."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from skimage import data

from rar_mmdet.errors import ConfigError, InvalidBoxError
from rar_mmdet.regions import (
    AreaScale,
    BlurBackground,
    BlurOutsideMask,
    FixedScale,
    GreyBackground,
    NoBackground,
    RegionCropper,
)
from rar_mmdet.regions.background import blur_matrix

BACKENDS = ("cpu", "torch")
BOX = [[150.0, 60.0, 300.0, 160.0]]


def crop(background, backend="cpu", masks=None, **settings):
    settings = {"size": 64, "scale": FixedScale(1.6), **settings}
    return RegionCropper(background=background, backend=backend, **settings).crop(data.astronaut(), BOX, masks)


def blur(pixels, sigma):
    """(H, W, 3) -> the same, all of it blurred."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    BlurBackground(sigma).paint(planes, np.zeros(4, dtype=int))
    return planes.transpose(1, 2, 0)


def inside_rows_and_cols():
    """The box is 150 x 100 in a window of 240: output pixels 12..52 and 18.67..45.33, those touched count."""
    return slice(18, 46), slice(12, 52)


@pytest.mark.parametrize("sigma", [0.5, 2, 3.9, 6, 8, 10, 16, 32, 50])
@pytest.mark.parametrize("size", [64, 100, 224])
def test_blur_is_a_gaussian(sigma, size):
    pixels = data.coffee()[30 : 30 + size, 100 : 100 + size]
    expected = pixels.astype(float)
    for axis in (0, 1):
        expected = gaussian_filter1d(expected, sigma, axis=axis, mode="reflect")
    assert np.abs(blur(pixels, sigma) - expected).max() <= 2.5  # 2 grey levels and a rounding
    matrix = blur_matrix(size, sigma)
    np.testing.assert_allclose(np.einsum("ij,jkc,lk->ilc", matrix, pixels, matrix, optimize=True), expected, atol=0.2)


@pytest.mark.parametrize("size", [64, 100, 224])
@pytest.mark.parametrize("sigma", [3, 5, 6, 10, 20, 32])
@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_blur_of_stripes_and_noise(size, sigma, period):
    """What an average over blocks would let through: stripes as wide as the blocks, and noise, of full contrast."""
    rng = np.random.default_rng(period)
    stripes = np.tile(np.arange(size) % period < period // 2, (size, 1))
    noise = rng.random((size, size)) < 0.5
    pixels = np.stack([stripes, stripes.T, noise], axis=2).astype(np.uint8) * 255
    matrix = blur_matrix(size, sigma).astype(float)
    expected = np.einsum("ij,jkc,lk->ilc", matrix, pixels, matrix, optimize=True)
    assert np.abs(blur(pixels, sigma) - expected).max() <= 2.5  # 2 grey levels and a rounding


@pytest.mark.parametrize("sigma", [1e3, 1e9])
def test_huge_sigma_is_the_mean(sigma):
    pixels = data.coffee()[:63, :63]
    assert np.abs(blur(pixels, sigma) - pixels.mean(axis=(0, 1))).max() <= 1


@pytest.mark.parametrize("sigma", [1e-200, 0.05])
def test_tiny_sigma_is_the_identity(sigma):
    for backend in BACKENDS:
        assert torch.equal(crop(BlurBackground(sigma), backend), crop(None, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigma_zero_is_the_identity(backend):
    assert torch.equal(crop(BlurBackground(0), backend), crop(None, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "background", [BlurBackground(4), BlurBackground(8, feather=5), BlurOutsideMask(4), GreyBackground(90)]
)
def test_inside_of_the_box_is_untouched(backend, background):
    rows, cols = inside_rows_and_cols()
    plain, changed = crop(None, backend), crop(background, backend)
    assert torch.equal(changed[..., rows, cols], plain[..., rows, cols])
    assert not torch.equal(changed, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outside_of_the_box_is_the_blurred_crop(backend):
    rows, cols = inside_rows_and_cols()
    plain = crop(None, backend)[0].permute(1, 2, 0).numpy()
    changed = crop(BlurBackground(4), backend)[0].permute(1, 2, 0).numpy().astype(int)
    outside = np.ones((64, 64), dtype=bool)
    outside[rows, cols] = False
    assert np.abs(changed - blur(plain, 4))[outside].max() <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_grey(backend):
    rows, cols = inside_rows_and_cols()
    changed = crop(GreyBackground(90), backend)
    changed[..., rows, cols] = 90
    assert (changed == 90).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_feather_goes_from_sharp_to_background(backend):
    image = np.full((64, 64, 3), 250, dtype=np.uint8)
    cropper = RegionCropper(size=64, background=GreyBackground(50, feather=3), scale=FixedScale(4), backend=backend)
    row = cropper.crop(image, [[24, 24, 40, 40]])[0, 0, 30].tolist()
    assert row[18:26] == [50, 50, 50, 100, 150, 200, 250, 250]
    assert row == row[::-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_is_kept_sharp(backend):
    mask = np.zeros((1, 512, 512), dtype=bool)
    mask[0, 60:160, 150:225] = True  # the left half of the box: output columns 12..32, rows 18.67..45.33
    plain, changed = crop(None, backend), crop(BlurOutsideMask(4), backend, torch.from_numpy(mask))
    assert torch.equal(changed[..., 19:45, 12:32], plain[..., 19:45, 12:32])
    assert not torch.equal(changed[..., 19:45, 33:52], plain[..., 19:45, 33:52])
    kept_share = (changed == plain).all(dim=1)[0, 19:45, 33:52].float().mean()
    assert kept_share < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_mask_falls_back_to_the_box(backend):
    empty = np.zeros((1, 512, 512), dtype=bool)
    assert torch.equal(crop(BlurOutsideMask(4), backend, empty), crop(BlurBackground(4), backend))


@pytest.mark.parametrize("feather", [0, 4])
def test_backends_agree_on_masks(feather):
    rows, cols = np.ogrid[:512, :512]
    mask = ((cols - 220) ** 2 + (rows - 110) ** 2 < 45**2)[None]
    by_cpu, by_torch = (
        crop(BlurOutsideMask(6, feather=feather), backend, mask, scale=AreaScale()) for backend in BACKENDS
    )
    assert (by_cpu.int() - by_torch.int()).abs().max() <= 2


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, bool, list])
def test_masks_of_any_kind(kind):
    mask = np.zeros((1, 512, 512), dtype=bool)
    mask[0, 60:160, 150:225] = True
    masks = list(mask) if kind is list else mask.astype(kind)
    assert torch.equal(crop(BlurOutsideMask(4), masks=masks), crop(BlurOutsideMask(4), masks=mask))


def contrast_outside(image, cropper):
    """Grey levels between the darkest and the brightest pixel above an object, away from the borders of the crop."""
    above = cropper.crop(image, [[250.0, 250.0, 550.0, 550.0]])[0, 0, cropper.size // 16].float()
    middle = above[cropper.size // 8 : -(cropper.size // 8)]
    return float(middle.max() - middle.min())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("background", [BlurBackground(10), BlurBackground(10, feather=6)])
def test_the_ranker_sees_as_much_of_the_surround_as_the_encoder(backend, background):
    """Stripes of 56 px around an object of 300 px: what is left of them depends on the side of the crop no more."""
    stripes = np.where(np.arange(800) // 28 % 2, 255, 0).astype(np.uint8)
    image = np.repeat(np.tile(stripes, (800, 1))[..., None], 3, axis=2)
    encoder = RegionCropper(size=224, scale=FixedScale(1.6), background=background, backend=backend)
    left = {side: contrast_outside(image, encoder.with_size(side)) for side in (224, 336, 490)}
    assert contrast_outside(image, encoder) == left[224]
    assert left[224] < 25
    assert max(left.values()) - min(left.values()) <= 3
    sharp = RegionCropper(size=490, scale=FixedScale(1.6), background=background, backend=backend)
    assert contrast_outside(image, sharp) > 150  # the same σ in pixels is another blur
    assert contrast_outside(image, RegionCropper(size=490, scale=FixedScale(1.6), backend=backend)) > 240


@pytest.mark.parametrize("background", [BlurBackground(8, feather=4), GreyBackground(90, feather=8), NoBackground()])
def test_a_background_at_twice_the_size_is_twice_as_wide(background):
    cropper = RegionCropper(size=64, scale=FixedScale(1.6), background=background)
    small = cropper.crop(data.astronaut(), BOX).float()
    large = cropper.with_size(128).crop(data.astronaut(), BOX).float()
    difference = (torch.nn.functional.avg_pool2d(large, 2) - small).abs()
    assert difference.mean() < 3
    if not background.is_identity:
        unscaled = RegionCropper(size=128, scale=FixedScale(1.6), background=background).crop(data.astronaut(), BOX)
        assert (torch.nn.functional.avg_pool2d(unscaled.float(), 2) - small).abs().mean() > 1.2 * difference.mean()


def test_masks_are_ignored_by_other_backgrounds():
    assert torch.equal(crop(BlurBackground(4), masks=np.zeros((7, 1, 1))), crop(BlurBackground(4)))


def test_wrong_masks_are_refused():
    with pytest.raises(InvalidBoxError, match=r"true inside and false outside, got floats; give masks > 0.5"):
        crop(BlurOutsideMask(4), masks=np.full((1, 512, 512), 0.3))
    with pytest.raises(InvalidBoxError, match=r"masks must be \(R, H, W\) = \(1, 512, 512\).*got \(1, 64, 64\)"):
        crop(BlurOutsideMask(4), masks=np.zeros((1, 64, 64), dtype=bool))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: BlurBackground(-1), "BlurBackground: sigma=-1"),
        (lambda: BlurOutsideMask(float("nan")), "BlurOutsideMask: sigma=nan"),
        (lambda: BlurBackground("10"), "sigma='10' must be a number of output pixels >= 0"),
        (lambda: BlurBackground(5, feather=-2), "background: feather=-2 must be a width in output pixels >= 0"),
        (lambda: BlurBackground(5, feather=None), "feather=None"),
        (lambda: GreyBackground(300), "level=300 must be in 0..255"),
        (lambda: GreyBackground("grey"), "level='grey'"),
    ],
)
def test_wrong_values_are_refused(build, match):
    with pytest.raises(ConfigError, match=match):
        build()
