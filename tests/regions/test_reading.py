"""Files of every kind become the RGB array their annotations speak of."""

import mmcv
import numpy as np
import pytest
from PIL import Image
from skimage import data

from rar_mmdet.errors import ImageReadError
from rar_mmdet.regions import read_image


@pytest.fixture
def photo():
    return data.astronaut()[:60, :90]


def test_rgb(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


def test_grey_has_three_equal_channels(tmp_path, photo):
    Image.fromarray(photo[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), np.repeat(photo[..., :1], 3, axis=2))


def test_alpha_is_dropped(tmp_path, photo):
    alpha = np.full((*photo.shape[:2], 1), 77, dtype=np.uint8)
    Image.fromarray(np.concatenate([photo, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


def test_16_bits_are_scaled(tmp_path, photo):
    Image.fromarray(photo[..., 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], photo[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_mmcv_does(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path, exif=exif, quality=95)
    pixels = read_image(path)
    assert pixels.shape == ((60, 90, 3) if orientation < 5 else (90, 60, 3))
    np.testing.assert_array_equal(pixels, mmcv.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, photo, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photo).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageReadError, match=f"cut.{suffix} is"):
        read_image(path)


def test_bytes_appended_by_a_camera_are_no_truncation(tmp_path, photo):
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path)
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + b"trailer\xff\xda" + b"\0" * 2000)
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0"], ids=["empty", "text", "header-only"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "note.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match="note.jpg is not an image"):
        read_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ImageReadError, match="Cannot open image .*gone.jpg"):
        read_image(tmp_path / "gone.jpg")
