"""Files of every kind become the RGB array their annotations speak of."""

import io

import mmcv
import numpy as np
import pytest
from PIL import Image
from skimage import data

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files.images import check_complete
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


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 1])
def test_the_end_of_a_thumbnail_is_not_the_end_of_the_photo(tmp_path, photo, share, progressive):
    thumbnail = io.BytesIO()
    Image.fromarray(photo[::4, ::4]).save(thumbnail, "JPEG")
    path = tmp_path / "a.jpg"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail.getvalue()
    Image.fromarray(photo).save(path, quality=95, exif=exif, progressive=progressive)
    content = path.read_bytes()
    cut = content.index(b"\xff\xda", len(exif))  # where the photo's own first scan begins
    data = content[: cut + int(len(content[cut:]) * share)]
    assert data.count(b"\xff\xd9") == (2 if share == 1 else 1)
    if share == 1:
        check_complete(data, "a.jpg")
    else:
        with pytest.raises(ImageReadError, match=rf"a\.jpg is truncated or damaged \({len(data)} bytes\).*again"):
            check_complete(data, "a.jpg")


def test_bytes_appended_by_a_camera_are_no_truncation(tmp_path, photo):
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path)
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + b"trailer\xff\xda" + b"\0" * 200_000)
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
