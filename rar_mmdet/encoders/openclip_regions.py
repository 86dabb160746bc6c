"""Dense features of CLIP's image towers: a vector of each patch, and of boxes by averaging them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from rar_mmdet.boxes import Boxes
from rar_mmdet.encoders.lazy import check_crops
from rar_mmdet.encoders.openclip import OpenClipEncoder
from rar_mmdet.encoders.region_pooling import boxes_in_cells, check_boxes, pool_boxes
from rar_mmdet.errors import ConfigError, EncoderLoadError
from rar_mmdet.files.images import ImageSource, photo_hw, read_image

__all__ = ["OpenClipRegionEncoder", "dense_features"]


class OpenClipRegionEncoder(OpenClipEncoder):
    """Boxes of a photo by one forward pass of a vision transformer or a ResNet that open_clip knows.

    A ResNet of timm that averages its last map and projects the mean (`timm_pool="avg"`, `timm_proj="linear"`) needs no
    change: the vector of the whole photo is the tower's own. In the last block of a vision transformer each patch keeps
    its own value instead of attending to others (MaskCLIP, arXiv 2112.01071, section 3.2; CLIPSelf, arXiv 2310.01403,
    section 3.1). CLIP was not trained for it: published gains are of towers that were tuned this way, such as
    CLIPSelf's, whose files load as any other weights of open_clip (`pretrained=FILE`).

    Args:
        dense_size: side in pixels that a photo is squeezed to, a multiple of the patch; `None`: the tower's own. Twice
            the side shows smaller objects, costs 4 to 16 times as much, and stretches the position table.
        model, pretrained, device, precision, batch_size, cache_dir, allow_download: as `OpenClipEncoder`.

    Raises:
        ConfigError: a value is of no use.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None = None,
        dense_size: int | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 256,
        cache_dir: str | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            pretrained=pretrained,
            device=device,
            precision=precision,
            batch_size=batch_size,
            cache_dir=cache_dir,
            allow_download=allow_download,
        )
        if dense_size is not None and (not isinstance(dense_size, int) or dense_size < 1):
            raise ConfigError(f"dense_size must be a whole number of pixels, got {dense_size!r}")
        self.dense_size = dense_size

    @property
    def fingerprint(self) -> str:
        """That of the weights, and how boxes are read from them."""
        return f"{super().fingerprint}:regions:{self.dense_size or self.image_size}"

    @torch.inference_mode()
    def encode_regions(self, image: ImageSource, boxes_xyxy: Boxes) -> Tensor:
        """Unit vectors of boxes of one photo, see `RegionEncoder`.

        Raises:
            InvalidBoxError: a box is not finite, has no area or lies outside the photo.
            EncoderLoadError: the model's image tower is neither of the two.
        """
        photo = read_image(image)
        boxes = check_boxes(boxes_xyxy, photo_hw(photo))
        if not len(boxes):
            return torch.zeros((0, self.dim), device=self._ready()[1])
        (grid,) = self._grids(torch.tensor(photo).permute(2, 0, 1)[None])
        rows, columns = grid.shape[1:]
        return self._unit(pool_boxes(grid, boxes_in_cells(boxes, photo_hw(photo), (rows, columns))))

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors: each a photo with one box, the whole of it."""
        check_crops(crops)
        vectors = [torch.zeros((0, self.dim), device=self._ready()[1])]
        for batch in crops.split(self.batch_size) if len(crops) else ():
            vectors.append(self._unit(self._grids(batch).float().mean(dim=(2, 3))))
        return torch.cat(vectors)

    def _grids(self, photos: Tensor) -> Tensor:
        """(B, D, h, w) dense features of (B, 3, H, W) uint8 photos."""
        (state, _), side = self._ready(), self.dense_size or self.image_size
        with torch.autocast(state.device.type, enabled=False):
            pixels = self._preprocess(photos, state, (side, side))
            return dense_features(state.model.visual, pixels)


def dense_features(visual: Any, pixels: Tensor) -> Tensor:
    """(B, D, h, w) vectors of the patches of (B, 3, H, W) normalised photos, whose sides may differ from training.

    Those of a vision transformer have unit length. Those of a ResNet do not: their mean is the tower's own output.

    Raises:
        EncoderLoadError: `visual` is neither open_clip's own `VisionTransformer` pooled at its class token nor a ResNet
            of timm pooled by its mean.
        ConfigError: a side is no multiple of the patch.
    """
    if _is_mean_of_projected(visual):
        cells = visual.trunk.forward_features(pixels).movedim(1, -1)
        return visual.head(cells).movedim(-1, 1).float()
    last = _last_block(visual)
    patch_height, patch_width = visual.patch_size
    if pixels.shape[2] % patch_height or pixels.shape[3] % patch_width:
        raise ConfigError(
            f"dense_size: sides {tuple(pixels.shape[2:])} must be multiples of the patch, {patch_height}x{patch_width}"
        )
    x = visual.conv1(pixels)
    grid_hw = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = visual.ln_pre(x + _positions(visual, grid_hw).to(x.dtype))
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    x = x[:, 1:]  # from here on patches do not look at one another, nor at the class token
    width = last.attn.embed_dim
    value = F.linear(last.ln_1(x), last.attn.in_proj_weight[-width:], last.attn.in_proj_bias[-width:])
    x = x + last.ls_1(last.attn.out_proj(value))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    x = visual.ln_post(x) @ visual.proj
    return F.normalize(x.float(), dim=-1).transpose(1, 2).unflatten(2, grid_hw)


def _is_mean_of_projected(visual: Any) -> bool:
    """Whether the tower's output is the mean of its last map, linearly projected: then of a part of the map too."""
    from open_clip.timm_model import TimmModel
    from timm.models import ResNet

    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    return (
        isinstance(trunk, ResNet)
        and getattr(trunk.global_pool, "pool_type", None) == "avg"
        and isinstance(trunk.fc, nn.Identity)
        and all(isinstance(part, nn.Linear | nn.Dropout | nn.Identity) for part in visual.head)
    )


def _last_block(visual: Any) -> Any:
    """The block whose values are taken."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    blocks = visual.transformer.resblocks if isinstance(visual, VisionTransformer) else [None]
    plain = isinstance(blocks[-1], ResidualAttentionBlock) and isinstance(blocks[-1].attn, nn.MultiheadAttention)
    if not plain or visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
        raise EncoderLoadError(
            "dense features need open_clip's own vision transformer, pooled at its class token, and not "
            f"{type(visual).__name__}. ViT-B-16, ViT-L-14 and the like have it; EVA, SigLIP, OpenAI's ResNets and "
            "ConvNeXt do not: use FGCLIP2RegionEncoder, RegionClipEncoder, or OpenClipEncoder with crops"
        )
    return blocks[-1]


def _positions(visual: Any, grid_hw: tuple[int, int]) -> Tensor:
    """(1 + h w, width) position table of another grid than the trained one: bicubic, as CLIPSelf resizes it."""
    table = visual.positional_embedding
    if tuple(visual.grid_size) == grid_hw:
        return table
    grid = table[1:].float().T.unflatten(1, visual.grid_size)[None]
    grid = F.interpolate(grid, grid_hw, mode="bicubic", align_corners=False)
    return torch.cat([table[:1].float(), grid[0].flatten(1).T])
