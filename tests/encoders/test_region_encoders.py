"""What every encoder of boxes keeps, whatever its tower."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from fgclip2_world import write_folder
from regionclip_world import build_networks, write_checkpoint
from tiny import write_model

from rar_mmdet import RegionRecognizer
from rar_mmdet.encoders import (
    FGCLIP2Encoder,
    FGCLIP2RegionEncoder,
    OpenClipEncoder,
    OpenClipRegionEncoder,
    RegionClipEncoder,
    RegionEncoder,
)
from rar_mmdet.errors import InvalidBoxError, MemoryMismatchError
from rar_mmdet.memory import CategoryMemory, Exemplar, TextMemory, encode_exemplars
from rar_mmdet.regions import RegionCropper
from rar_mmdet.testing import make_boxes, make_image

CLOSE = {"atol": 2e-5, "rtol": 0}
HW = (64, 96)
NAMES = ["red cup", "blue star", "drink", "bow"]
ROOT = Path(__file__).parents[2]
KINDS = ["fgclip2", "openclip-vit", "openclip-resnet", "regionclip"]
# Towers whose grid of cells is symmetric in a photo of HW. Strides and pooling of a timm ResNet start at one rim.
SYMMETRIC = [kind for kind in KINDS if kind != "openclip-resnet"]


class World:
    """Weights of each kind on disk, encoders and their memories: each made once."""

    def __init__(self, folder: Path) -> None:
        self.fgclip2 = str(write_folder(folder / "fgclip2"))
        self.vit = f"local-dir:{write_model(folder / 'vit', image_size=64)}"
        self.resnet = f"local-dir:{ROOT / 'demo' / 'weights' / 'clip'}"
        self.regionclip = write_checkpoint(folder / "rn50x4.pth", build_networks(9))

    @functools.cache  # noqa: B019 - there is one world
    def regions(self, kind: str):
        """The encoder of boxes that tests share."""
        return self.boxes(kind)

    def boxes(self, kind: str, **changes):
        """The encoder of boxes; photos of HW are its input as they are, or squeezed to a square."""
        kwargs = {"device": "cpu", **changes}
        if kind == "fgclip2":
            return FGCLIP2RegionEncoder(**{"model": self.fgclip2, "max_patches": 24, **kwargs})
        if kind == "openclip-vit":
            return OpenClipRegionEncoder(**{"model": self.vit, **kwargs})
        if kind == "openclip-resnet":
            return OpenClipRegionEncoder(**{"model": self.resnet, "dense_size": 128, **kwargs})
        return RegionClipEncoder(**{"checkpoint": self.regionclip, "min_size": 64, "max_size": 160, **kwargs})

    @functools.cache  # noqa: B019
    def memory(self, of: str, encoder):
        """A memory of names or of exemplars, made by an encoder."""
        recipe = TextMemory(cache_dir=None)
        if of == "names":
            return recipe.prepare(encoder, NAMES)
        photo = make_image()
        exemplars = [Exemplar(photo, row, (5.0, 6.0, 30.0 + row, 40.0)) for row in range(len(NAMES))]
        entries = encode_exemplars(encoder, RegionCropper(size=encoder.image_size).crop, exemplars)
        return CategoryMemory(entries, NAMES, info=recipe.info(encoder))

    @functools.cache  # noqa: B019
    def crops(self, kind: str):
        """The encoder of crops of the same weights, where there is one."""
        if kind == "fgclip2":
            return FGCLIP2Encoder(model=self.fgclip2, device="cpu", walk="box")
        model = {"openclip-vit": self.vit, "openclip-resnet": self.resnet}.get(kind)
        return model and OpenClipEncoder(model=model, device="cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def encoder(world, kind):
    return world.regions(kind)


def recognizer(encoder, memory):
    return RegionRecognizer(cropper=RegionCropper(), encoder=encoder, memory=memory, category_names=NAMES).to("cpu")


class TestBoxes:
    def test_order_and_number_do_not_matter(self, encoder):
        image, boxes = make_image(*HW), make_boxes(9, *HW)
        together = encoder.encode_regions(image, boxes)
        assert isinstance(encoder, RegionEncoder)
        assert together.shape == (9, encoder.dim)
        assert together.dtype == torch.float32
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(encoder.encode_regions(image, boxes[order]), together[order], **CLOSE)
        for row in (0, 8):
            torch.testing.assert_close(encoder.encode_regions(image, boxes[row : row + 1])[0], together[row], **CLOSE)

    def test_none(self, encoder):
        for none in ([], torch.zeros((0, 4))):
            assert encoder.encode_regions(make_image(), none).shape == (0, encoder.dim)

    def test_odd_ones_have_unit_vectors(self, encoder):
        """Smaller than a pixel, of one patch, thin, on the rim, mostly outside, larger than the photo."""
        height, width = HW
        odd = [
            [10.2, 9.1, 10.6, 9.3],
            [32, 16, 48, 32],
            [3, 2, 4, 60],
            [width - 1, height - 1, width, height],
            [-500, -300, 1, 1],
            [-50, -50, width + 70, height + 90],
        ]
        vectors = encoder.encode_regions(make_image(*HW), odd)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(odd)))

    @pytest.mark.parametrize(
        "box",
        [
            pytest.param([10, 10, 10, 30], id="no-area"),
            pytest.param([30, 10, 10, 30], id="inverted"),
            pytest.param([100, 10, 120, 30], id="outside"),
            pytest.param([96, 0, 120, 30], id="touches-from-outside"),
            pytest.param([10, 10, float("nan"), 30], id="nan"),
            pytest.param([10, 10, float("inf"), 30], id="infinite"),
        ],
    )
    def test_without_pixels_they_are_refused(self, encoder, box):
        with pytest.raises(InvalidBoxError, match="box 1 .* has no area within a photo of 96x64 px"):
            encoder.encode_regions(make_image(*HW), [[0, 0, 20, 20], box])

    def test_a_crop_is_a_photo_with_one_box(self, encoder):
        crop = make_image(64, 64, 5)
        found = encoder.encode_images(torch.from_numpy(crop).permute(2, 0, 1)[None])
        torch.testing.assert_close(found, encoder.encode_regions(crop, [[0, 0, 64, 64]]), **CLOSE)
        none = torch.zeros((0, 3, 64, 64), dtype=torch.uint8)
        assert encoder.encode_images(none).shape == encoder.encode_texts([]).shape == (0, encoder.dim)


class TestMirrored:
    """A photo and its boxes, mirrored, have the same vectors where the tower does not tell left from right."""

    @pytest.mark.parametrize("kind", SYMMETRIC)
    def test_photo_and_boxes(self, world, kind):
        encoder, hw = world.boxes(kind), (64, 64) if kind == "openclip-vit" else HW
        image, boxes = make_image(*hw), make_boxes(12, *hw)
        mirrored = torch.stack([hw[1] - boxes[:, 2], boxes[:, 1], hw[1] - boxes[:, 0], boxes[:, 3]], dim=1)
        flipped = image[:, ::-1].copy()
        plain = (encoder.encode_regions(image, boxes) - encoder.encode_regions(flipped, mirrored)).abs().max()
        assert plain > 1e-3  # a tower of any weights does tell
        with torch.inference_mode():
            _make_symmetric(kind, encoder)
        expected = encoder.encode_regions(image, boxes)
        torch.testing.assert_close(encoder.encode_regions(flipped, mirrored), expected, **CLOSE)
        assert (encoder.encode_regions(flipped, boxes) - expected).abs().max() > 1e-4  # another place in the photo


def _make_symmetric(kind, encoder):
    """Make kernels and position tables of a loaded tower their own mirror images."""
    model = encoder.load()._ready()[0]
    if kind == "fgclip2":
        vision = model.model.vision_model.embeddings
        patches = vision.patch_embedding.weight.unflatten(1, (16, 16, 3))  # row, column, channel
        patches.copy_((patches + patches.flip(2)) / 2)
        table = vision.position_embedding.weight.unflatten(0, (4, 4))
        table.copy_((table + table.flip(1)) / 2)
    elif kind == "openclip-vit":
        visual = model.model.visual
        visual.conv1.weight.copy_((visual.conv1.weight + visual.conv1.weight.flip(3)) / 2)
        table = visual.positional_embedding[1:].unflatten(0, visual.grid_size)
        table.copy_((table + table.flip(1)) / 2)
    else:
        network = model.backbone
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
        # With stride 2 a kernel of three columns begins one pixel outside on the left; one of the last two does not.
        network.conv1.weight[..., 1:] = network.conv1.weight[..., 1:].mean(dim=3, keepdim=True)
        network.conv1.weight[..., 0] = 0
        side = network.attnpool.side
        table = network.attnpool.positional_embedding[1:].unflatten(0, (side, side))
        table.copy_((table + table.flip(1)) / 2)


class TestBatchesAndPrecision:
    def test_batches_and_order_do_not_matter(self, world, kind, encoder):
        small = world.boxes(kind, batch_size=2)
        crops = torch.stack([torch.from_numpy(make_image(64, 64, seed)).permute(2, 0, 1) for seed in range(5)])
        order = torch.tensor([3, 0, 4, 1, 2])
        torch.testing.assert_close(small.encode_images(crops[order]), encoder.encode_images(crops)[order], **CLOSE)
        texts = ["a red cup", "star", "the blue bow of a circle", "drink", "cup"]
        found = small.encode_texts([texts[row] for row in order.tolist()])
        torch.testing.assert_close(found, encoder.encode_texts(texts)[order], **CLOSE)

    def test_half_precision_is_close(self, world, kind, encoder):
        half = world.boxes(kind, precision="bf16")
        image, boxes = make_image(*HW), make_boxes(9, *HW)
        crops = torch.from_numpy(make_image(64, 64, 5)).permute(2, 0, 1)[None]
        for encode in (
            lambda encoder: encoder.encode_regions(image, boxes),
            lambda encoder: encoder.encode_images(crops),
            lambda encoder: encoder.encode_texts(["a red cup", "star", "the blue bow"]),
        ):
            cosines = (encode(half) * encode(encoder)).sum(dim=1)
            assert cosines.min() > 0.999
        assert half.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("of", ["names", "exemplars"])
class TestMemories:
    def test_those_of_crops_and_of_other_weights_are_refused(self, world, kind, encoder, of):
        others = [world.crops(kind), *(world.regions(other) for other in KINDS if other != kind)]
        for other in filter(None, others):
            with pytest.raises(MemoryMismatchError, match=re.escape(other.fingerprint)):
                recognizer(encoder, world.memory(of, other))(make_image(), make_boxes(1))
        found = recognizer(encoder, world.memory(of, encoder))(make_image(), make_boxes(3))
        assert len(found) == 3

    def test_those_of_boxes_are_refused_for_crops(self, world, kind, encoder, of):
        crops = world.crops(kind)
        if crops is not None:
            with pytest.raises(MemoryMismatchError, match=re.escape(encoder.fingerprint)):
                recognizer(crops, world.memory(of, encoder))(make_image(), make_boxes(1))
