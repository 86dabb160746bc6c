"""Files, bytes and PIL images of every kind become the RGB array their annotations speak of."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from rar_mmdet.errors import ImageReadError
from rar_mmdet.files import images
from rar_mmdet.files.images import (
    as_photo,
    check_complete,
    check_pixels,
    check_size,
    decode_image,
    photo_hw,
    read_image,
)

ORIENTATION = 0x0112


@pytest.fixture
def photo():
    return data.astronaut()[:60, :90]


def encoded(picture, kind, **options):
    """The bytes of an image file; `picture` is an array or a PIL image."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def by_mmdetection(path):
    """(H, W, 3) RGB of a file, as MMDetection's LoadImageFromFile decodes it."""
    return mmcv.imfrombytes(Path(path).read_bytes(), flag="color")[..., ::-1]


def grey_16(photo):
    """(H, W) uint16 that uses all of the 16 bits."""
    return np.clip(photo[..., 0].astype(int) * 257 + np.arange(90) * 3 - 100, 0, 65535).astype(np.uint16)


# Name of a file -> how to write it, from a PIL image of mode RGB. All keep every pixel but for the last three.
KINDS = {
    "rgb.png": lambda p: encoded(p, "PNG"),
    "grey.png": lambda p: encoded(p.convert("L"), "PNG"),
    "grey_alpha.png": lambda p: encoded(p.convert("LA"), "PNG"),
    "rgba.png": lambda p: encoded(p.convert("RGBA"), "PNG"),
    "bits.png": lambda p: encoded(p.convert("1"), "PNG"),
    "palette.png": lambda p: encoded(p.quantize(16), "PNG"),
    "transparent_palette.png": lambda p: encoded(p.quantize(16), "PNG", transparency=3),
    "animated.png": lambda p: encoded(p, "PNG", save_all=True, append_images=[p.rotate(90)]),
    "still.gif": lambda p: encoded(p, "GIF"),
    "animated.gif": lambda p: encoded(p, "GIF", save_all=True, append_images=[p.rotate(90)]),
    "lossless.webp": lambda p: encoded(p, "WEBP", lossless=True),
    "alpha.webp": lambda p: encoded(p.convert("RGBA"), "WEBP", lossless=True),
    "animated.webp": lambda p: encoded(p, "WEBP", lossless=True, save_all=True, append_images=[p.rotate(90)]),
    "rgb.tif": lambda p: encoded(p, "TIFF"),
    "lzw.tif": lambda p: encoded(p, "TIFF", compression="tiff_lzw"),
    "pages.tif": lambda p: encoded(p, "TIFF", save_all=True, append_images=[p.rotate(90)]),
    "bits.tif": lambda p: encoded(p.convert("1"), "TIFF"),
    "cmyk.tif": lambda p: encoded(p.convert("CMYK"), "TIFF"),
    "rgb.bmp": lambda p: encoded(p, "BMP"),
    "bits.bmp": lambda p: encoded(p.convert("1"), "BMP"),
    "rgb.ppm": lambda p: encoded(p, "PPM"),
    "rgb.jp2": lambda p: encoded(p, "JPEG2000"),
    "rgb.jpg": lambda p: encoded(p, "JPEG"),
    "grey.jpg": lambda p: encoded(p.convert("L"), "JPEG"),
    "cmyk.jpg": lambda p: encoded(p.convert("CMYK"), "JPEG"),
    "jpeg_named.png": lambda p: encoded(p, "JPEG"),
    "png_named.jpg": lambda p: encoded(p, "PNG"),
    "no_suffix": lambda p: encoded(p, "PNG"),
    "ein schöner Tag, 日本.png": lambda p: encoded(p, "PNG"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_its_bytes_and_its_pil_image_are_what_mmdetection_sees(tmp_path, photo, name):
    path = tmp_path / name
    path.write_bytes(KINDS[name](Image.fromarray(photo)))
    expected = by_mmdetection(path)
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(str(path)), expected)
    np.testing.assert_array_equal(read_image(path.read_bytes()), expected)
    np.testing.assert_array_equal(read_image(memoryview(path.read_bytes())), expected)
    with Image.open(path) as picture:
        difference = np.abs(read_image(picture).astype(int) - expected)
    assert difference.max() <= (1 if "jpg" in name else 0)  # two versions of libjpeg may round otherwise
    assert read_image(path).flags.c_contiguous
    if name.split(".")[0] in ("rgb", "rgba", "alpha", "lossless", "lzw", "animated", "pages"):
        assert np.abs(expected.astype(int) - photo).max() <= {"gif": 80, "jpg": 120}.get(name.split(".")[1], 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_everywhere(tmp_path, photo, orientation, kind):
    path = tmp_path / "a"
    path.write_bytes(encoded(photo, kind, exif=exif_of(orientation)))
    pixels = read_image(path)
    assert pixels.shape == ((60, 90, 3) if orientation < 5 else (90, 60, 3))
    np.testing.assert_array_equal(pixels, by_mmdetection(path))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(picture), pixels)
        picture.load()
        np.testing.assert_array_equal(read_image(picture), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_pil_images_are_turned_as_their_tag_says(photo, orientation, mode):
    """Oracle: what EXIF 2.3 says row 0 and column 0 are, spelled out in NumPy."""
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]
    picture = Image.fromarray(grey_16(photo)) if mode == "I;16" else Image.fromarray(photo).convert(mode)
    plain = read_image(picture)
    picture.getexif()[ORIENTATION] = orientation
    np.testing.assert_array_equal(read_image(picture), upright(plain))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_turn_nothing(tmp_path, photo, orientation):
    content = encoded(photo, "JPEG", exif=exif_of(orientation))
    np.testing.assert_array_equal(read_image(content), read_image(encoded(photo, "JPEG")))
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(content))), read_image(content))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_the_same_in_every_reader(tmp_path, photo, kind):
    """The higher 8 bits, as OpenCV's IMREAD_COLOR takes them."""
    grey = grey_16(photo)
    path = tmp_path / "a"
    path.write_bytes(encoded(grey, kind))
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(by_mmdetection(path), expected)
    np.testing.assert_array_equal(read_image(Image.open(path)), expected)
    np.testing.assert_array_equal(read_image(grey), expected)
    np.testing.assert_array_equal(read_image(Image.fromarray(grey.astype(np.int32))), expected)  # mode I


@pytest.mark.parametrize(
    ("mode", "source"),
    [("F", lambda p: p[..., 0] / 255), ("F", lambda p: p[..., 0]), ("CMYK", None), ("YCbCr", None), ("HSV", None)],
)
def test_other_modes_of_pil(photo, mode, source):
    if source is None:
        picture = Image.fromarray(photo).convert(mode)
        expected = np.asarray(picture.convert("RGB"))
    else:
        picture = Image.fromarray(source(photo).astype(np.float32))
        expected = np.repeat(photo[..., :1], 3, axis=2)
    assert picture.mode == mode
    np.testing.assert_array_equal(read_image(picture), expected)


def test_premultiplied_alpha_is_divided_out(photo):
    rgba = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(read_image(Image.fromarray(rgba).convert("RGBa")), photo)
    grey_alpha = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(read_image(grey_alpha.convert("La")), read_image(grey_alpha))


def test_arrays_and_tensors(photo):
    tensor = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    for source in (photo, tensor, photo / 255, tensor.float()):
        np.testing.assert_array_equal(read_image(source), photo)
        assert read_image(source).flags.c_contiguous
        assert photo_hw(as_photo(source)) == (60, 90)
    assert isinstance(as_photo(tensor.float()), torch.Tensor)
    assert isinstance(as_photo(Image.fromarray(photo)), np.ndarray)


def test_links_are_followed(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(encoded(photo, "PNG"))
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), photo)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, photo, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photo).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageReadError, match=f"cut.{suffix} is.*etch it again"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File|Tag data:UserWarning")
def test_truncated_images_of_every_kind_are_refused(photo, kind, share):
    content = encoded(photo, kind)[:-2]
    content = content[: int(len(content) * share)]
    with pytest.raises(ImageReadError, match="image 7 is"):
        decode_image(content, "image 7")
    with pytest.raises((ImageReadError, OSError)):
        read_image(Image.open(io.BytesIO(content)))


def test_a_pil_image_that_turns_out_truncated_is_named(tmp_path, photo):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo, "JPEG")[:-400])
    with Image.open(path) as picture, pytest.raises(ImageReadError, match=r"PIL image .*cut.jpg \(RGB, 90 x 60 px\)"):
        read_image(picture)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 1])
def test_the_end_of_a_thumbnail_is_not_the_end_of_the_photo(photo, share, progressive):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encoded(photo[::4, ::4], "JPEG")
    content = encoded(photo, "JPEG", quality=95, exif=exif, progressive=progressive)
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "it has 0 bytes.*Fetch it again", id="empty"),
        pytest.param(b"no image", r"damaged \(8 bytes\). If other programs show it, save it as PNG", id="text"),
        pytest.param(b"\xff\xd8\xff\xe0", "its end is missing; fetch it again", id="header-only"),
        pytest.param(b"\n<!DOCTYPE html><p>404", "begins like a web page", id="web-page"),
        pytest.param(b"<svg/>", "SVG drawing; download the photo", id="svg"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`", id="lfs"),
        pytest.param(b"%PDF-1.7", "save the page as PNG", id="pdf"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0", "HEIC photo; save it as JPEG", id="heic"),
        pytest.param(b"\0" * 5000, "damaged", id="zeros"),
        pytest.param(os.urandom(5000), "damaged", id="noise"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "note.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=f"image .*note.jpg is not an image.*{said}"):
        read_image(path)
    with pytest.raises(ImageReadError, match=f"image given as {len(content)} bytes is not an image.*{said}"):
        read_image(content)
    with pytest.raises(ImageReadError, match=f"note.jpg is not an image.*{said}"):
        check_pixels(content, "note.jpg", 1)


def huge_png(width, height):
    """A PNG whose header says that it is huge."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def test_images_beyond_opencvs_limit_are_named(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(huge_png(40_000, 40_000))
    with pytest.raises(ImageReadError, match=r"map.png cannot be decoded.*2\^30 pixels.*OPENCV_IO_MAX_IMAGE_PIXELS"):
        read_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_pixels_are_counted_before_they_are_decoded(photo, kind):
    content = encoded(photo, kind)  # 90x60
    check_pixels(content[: len(content) * 9 // 10] if kind == "JPEG" else content, "photo", 90 * 60)
    with pytest.raises(ImageReadError, match=r"photo is 90x60 px, 0.0 megapixels; at most 0.005399 .* Make it smaller"):
        check_pixels(content, "photo", 90 * 60 - 1)


def test_pixels_beyond_pils_limit_are_too_many():
    with pytest.raises(ImageReadError, match="map.png is too large: .*1600000000 pixels.* exceeds limit"):
        check_pixels(huge_png(40_000, 40_000), "map.png", 10**10)


def test_a_cut_image_beyond_pils_limit_is_named():
    with pytest.raises(ImageReadError, match="map.png is truncated or damaged.*decompression bomb"):
        check_complete(huge_png(40_000, 40_000)[:-12], "map.png")


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ImageReadError, match="Cannot open image .*gone.jpg: No such file.*Check the path"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageReadError, match="Cannot open image .*: it is a folder. Give the path of one image"):
        read_image(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(ImageReadError, match="loop.jpg: Too many levels of symbolic links"):
        read_image(tmp_path / "loop.jpg")
    with pytest.raises(ImageReadError, match="Cannot open image a.*null (byte|character)"):
        read_image("a\0b.jpg")
    with pytest.raises(ImageReadError, match="File name too long"):
        read_image("a" * 5000)
    with pytest.raises(ImageReadError, match="/dev/zero: it is a pipe or a device"):
        read_image("/dev/zero")
    with pytest.raises(ImageReadError, match="https://x.org/a.jpg: this is an address. Download"):
        read_image("https://x.org/a.jpg")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        pytest.param(None, "cannot read an image from NoneType; give a path", id="none"),
        pytest.param([[1, 2], [3, 4]], "cannot read an image from list", id="list"),
        pytest.param(io.BytesIO(b"x"), "cannot read an image from BytesIO; give a path, the bytes", id="file-object"),
        pytest.param(Image.new("RGB", (0, 5)), "has no pixels", id="pil-without-pixels"),
        pytest.param(Image.fromarray(np.full((4, 4), -5, np.int32)), r"PIL image.*\(I, 4 x 4 px\).*-5..-5", id="pil-i"),
        pytest.param(Image.fromarray(np.full((4, 4), np.nan, np.float32)), r"PIL image.*\(F, .*NaN", id="pil-f"),
        pytest.param(torch.zeros(40, 50, 3), r"\(H, W, 3\): give image.permute", id="channels-last-tensor"),
        pytest.param(np.zeros((3, 40, 50)), r"\(3, H, W\): give image.transpose", id="channels-first-array"),
    ],
)
def test_other_sources_are_refused(source, match):
    with pytest.raises(ImageReadError, match=match):
        read_image(source)
    with pytest.raises(ImageReadError, match=match):
        as_photo(source)


def test_a_closed_pil_image_is_refused(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(encoded(photo, "PNG"))
    with Image.open(tmp_path / "a.png") as picture:
        pass
    with pytest.raises(ImageReadError, match="PIL image .*a.png .*cannot be read: .*closed"):
        read_image(picture)


def test_size_is_compared_with_the_annotation():
    check_size((60, 90), (60, 90), "photo 7")
    check_size((60, 90), None, "photo 7")
    with pytest.raises(ImageReadError, match="photo 7 is 90x60 px but its annotation says 60x90.*turned upright"):
        check_size((60, 90), (90, 60), "photo 7")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File|Tag data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damage_anywhere_gives_pixels_or_a_named_error(photo, kind):
    """Never another exception: a run over many photos tells which one it was."""
    content = np.frombuffer(encoded(photo, kind, exif=exif_of(6)) if kind != "BMP" else encoded(photo, kind), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = content.copy()
        place = rng.integers(0, len(damaged) - 8, 3)
        damaged[place] = rng.integers(0, 256, 3)
        cut = damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.3 else damaged
        with contextlib.suppress(ImageReadError):
            assert images.decode_image(cut.tobytes(), "it").dtype == np.uint8
        try:
            picture = Image.open(io.BytesIO(cut.tobytes()))
        except Exception:  # noqa: BLE001 - what PIL says before we see the image is not ours
            continue
        with contextlib.suppress(ImageReadError):
            assert read_image(picture).dtype == np.uint8
