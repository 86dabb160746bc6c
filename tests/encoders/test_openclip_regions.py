"""Dense features of CLIP's image towers, and boxes read from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from slow_pooling import pool
from tiny import write_model
from torch.nn import functional as F  # noqa: N812

from rar_mmdet.encoders import OpenClipEncoder, OpenClipRegionEncoder, RegionEncoder
from rar_mmdet.encoders.openclip_regions import dense_features
from rar_mmdet.encoders.region_pooling import boxes_in_cells
from rar_mmdet.errors import ConfigError, EncoderLoadError
from rar_mmdet.testing import make_boxes, make_image

ROOT = Path(__file__).parents[2]
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "plain", image_size=64)


@pytest.fixture(scope="module")
def encoder(folder):
    return OpenClipRegionEncoder(model=f"local-dir:{folder}", device="cpu")


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return VisionTransformer(64, 16, 32, 3, 2, 4.0, output_dim=12).eval().requires_grad_(False)


class TestDenseFeatures:
    def test_equal_a_last_block_in_which_each_patch_sees_itself_alone(self, tower):
        pixels = torch.randn(2, 3, 64, 64)
        x = tower._embeds(pixels)
        for block in tower.transformer.resblocks[:-1]:
            x = block(x)
        only_self = torch.full((17, 17), -torch.inf).fill_diagonal_(0)
        x = tower.ln_post(tower.transformer.resblocks[-1](x, attn_mask=only_self))[:, 1:] @ tower.proj
        expected = F.normalize(x, dim=-1).transpose(1, 2).reshape(2, 12, 4, 4)
        torch.testing.assert_close(dense_features(tower, pixels), expected, **CLOSE)

    def test_other_grids_stretch_the_position_table(self, tower):
        assert dense_features(tower, torch.randn(1, 3, 96, 128)).shape == (1, 12, 6, 8)
        tower.positional_embedding[1:] = tower.positional_embedding[1]  # a table that is the same however stretched
        pixels = torch.randn(1, 3, 64, 64)
        tiled = dense_features(tower, pixels.repeat(1, 1, 2, 2))
        torch.testing.assert_close(tiled[:, :, :4, :4], tiled[:, :, 4:, 4:], **CLOSE)

    def test_a_mirrored_photo_has_mirrored_features_where_the_tower_is_symmetric(self, tower):
        tower.conv1.weight.copy_((tower.conv1.weight + tower.conv1.weight.flip(3)) / 2)
        grid = tower.positional_embedding[1:].reshape(4, 4, -1)
        tower.positional_embedding[1:] = ((grid + grid.flip(1)) / 2).reshape(16, -1)
        pixels = torch.randn(1, 3, 64, 64)
        found = dense_features(tower, pixels.flip(3)).flip(3)
        torch.testing.assert_close(found, dense_features(tower, pixels), **CLOSE)

    def test_sides_are_multiples_of_the_patch(self, tower):
        with pytest.raises(ConfigError, match="must be multiples of the patch, 16x16"):
            dense_features(tower, torch.zeros(1, 3, 64, 70))

    def test_other_towers_are_refused_by_name(self):
        resnet = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 16, 4, 32, 8)
        with pytest.raises(EncoderLoadError, match="and not ModifiedResNet"):
            dense_features(resnet, torch.zeros(1, 3, 32, 32))
        pooled = VisionTransformer(32, 16, 32, 1, 2, 4.0, output_dim=12, pool_type="avg")
        with pytest.raises(EncoderLoadError, match="pooled at its class token"):
            dense_features(pooled, torch.zeros(1, 3, 32, 32))


class TestResNet:
    """The demo's tower: a ResNet whose output is the mean of its last map, projected."""

    @pytest.fixture(scope="class")
    def model(self):
        return f"local-dir:{ROOT / 'demo' / 'weights' / 'clip'}"

    def test_a_whole_photo_is_the_towers_own_vector(self, model):
        photo = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        regions = OpenClipRegionEncoder(model=model, device="cpu")
        expected = OpenClipEncoder(model=model, device="cpu").encode_images(photo)
        torch.testing.assert_close(regions.encode_images(photo), expected, **CLOSE)
        whole = regions.encode_regions(photo[0].permute(1, 2, 0).numpy(), [[0, 0, 64, 64]])
        torch.testing.assert_close(whole, expected[:1], **CLOSE)

    def test_a_box_of_one_cell_is_that_cell(self, model):
        regions = OpenClipRegionEncoder(model=model, dense_size=128, device="cpu")
        image = make_image(128, 128)
        (grid,) = regions._grids(torch.from_numpy(image).permute(2, 0, 1)[None])
        assert grid.shape[1:] == (4, 4)  # every 32 px
        found = regions.encode_regions(image, [[32, 64, 64, 96]])
        torch.testing.assert_close(found[0], F.normalize(grid[:, 2, 1], dim=0), **CLOSE)


class TestBoxes:
    def test_equal_a_slow_loop(self, encoder):
        image, boxes = make_image(90, 120), make_boxes(12, 90, 120)
        (grid,) = encoder._grids(torch.from_numpy(image).permute(2, 0, 1)[None])
        cells = boxes_in_cells(boxes, (90, 120), (4, 4)).double().numpy()
        expected = np.stack([pool(grid.double().numpy(), box)[:, 0, 0] for box in cells])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(encoder.encode_regions(image, boxes).numpy(), expected, atol=2e-6)

    def test_a_box_of_one_patch_is_that_patch(self, encoder):
        image = make_image(64, 64)
        (grid,) = encoder._grids(torch.from_numpy(image).permute(2, 0, 1)[None])
        torch.testing.assert_close(encoder.encode_regions(image, [[32, 16, 48, 32]])[0], grid[:, 1, 2], **CLOSE)

    def test_kinds_and_sides_have_fingerprints_of_their_own(self, folder, encoder):
        crops = OpenClipEncoder(model=f"local-dir:{folder}", device="cpu")
        large = OpenClipRegionEncoder(model=f"local-dir:{folder}", device="cpu", dense_size=96)
        assert len({crops.fingerprint, encoder.fingerprint, large.fingerprint}) == 3
        assert isinstance(encoder, RegionEncoder)
        assert not isinstance(crops, RegionEncoder)
        assert large.encode_regions(make_image(), make_boxes(2)).shape == (2, 16)

    def test_values_of_no_use_are_refused(self):
        with pytest.raises(ConfigError, match="dense_size must be"):
            OpenClipRegionEncoder(model="ViT-B-16", dense_size=0)
