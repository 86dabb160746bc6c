"""RegionCLIP with given boxes: photo and boxes to features, token ids to features; nothing is normalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rar_mmdet.boxes import Boxes, boxes_to_array
from rar_mmdet.encoders.regionclip.files import IMAGE_PREFIX, TEXT_PREFIX, read_tensors
from rar_mmdet.encoders.regionclip.networks import CHANNELS_PER_HEAD, ImageNetwork, TextNetwork
from rar_mmdet.errors import ConfigError, EncoderLoadError, ImageReadError

__all__ = ["RegionClip"]

# CLIP's own, of pixels in 0..1.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# One tensor of each part that sizes are read from.
_IMAGE_PARTS = (
    *(f"conv{i}.weight" for i in (1, 2, 3)),
    *(f"layer{i}.0.conv{j}.weight" for i in (1, 2, 3, 4) for j in (1, 3)),
    "attnpool.positional_embedding",
    "attnpool.c_proj.weight",
)
_TEXT_PARTS = ("token_embedding.weight", "positional_embedding", "text_projection")


class RegionClip(nn.Module):
    """The two networks of a published checkpoint, and how photos come in.

    Args:
        image: the image network.
        text: the text network; fine-tuned checkpoints have none.
        min_size, max_size: the photo's short side becomes `min_size` px, unless the long one would exceed `max_size`.

    Attributes:
        region_batch: boxes that go through the last stage at a time; bounds memory (a box of RN50 has 0.8 MB there).
    """

    region_batch = 128

    def __init__(
        self, image: ImageNetwork, text: TextNetwork | None = None, min_size: int = 800, max_size: int = 1333
    ) -> None:
        super().__init__()
        if not 1 <= min_size <= max_size:
            raise ConfigError(f"sizes must be 1 <= min_size <= max_size, got {min_size} and {max_size}")
        self.backbone, self.lang_encoder = image, text
        self.min_size, self.max_size = min_size, max_size

    @classmethod
    def from_checkpoint(cls, path: str | Path, min_size: int = 800, max_size: int = 1333) -> RegionClip:
        """The model of a published file, in float32, for inference; other networks in the file are left out.

        Args:
            path: `.pth` (a dict of tensors, usually under 'model'; read without unpickling anything else) or
                `.safetensors`.
            min_size, max_size: see the class.

        Raises:
            MissingAssetError: there is no such file.
            EncoderLoadError: it is damaged, lacks a tensor, or is of another kind of network.
        """
        tensors = read_tensors(path)
        image = _fill(ImageNetwork, tensors, IMAGE_PREFIX, _IMAGE_PARTS, str(path))
        has_text = any(name.startswith(TEXT_PREFIX) for name in tensors)
        text = _fill(TextNetwork, tensors, TEXT_PREFIX, _TEXT_PARTS, str(path)) if has_text else None
        return cls(image, text, min_size, max_size).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """D, the length of the features."""
        return self.backbone.attnpool.c_proj.out_features

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.backbone.attnpool.positional_embedding.device

    def resized_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a photo after `resize`."""
        scale = self.min_size / min(image_hw)
        height, width = (side * scale for side in image_hw)
        if max(height, width) > self.max_size:
            scale = self.max_size / max(height, width)
            height, width = height * scale, width * scale
        return max(1, int(height + 0.5)), max(1, int(width + 0.5))

    def resize(self, image_rgb: NDArray[np.uint8] | Tensor) -> Tensor:
        """(H, W, 3) uint8 RGB -> (3, h, w) uint8, the photo the network sees (PIL, bilinear)."""
        image = np.ascontiguousarray(image_rgb)
        height, width = self.resized_hw(image.shape[:2])
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    @torch.inference_mode()
    def image_features(self, image_rgb: NDArray[np.uint8] | Tensor) -> Tensor:
        """(1, C, h/16, w/16) features of a photo before boxes are read, by one forward pass.

        Raises:
            ImageReadError: the photo is so long and thin that less than one cell of the features is left of it.
        """
        size_hw, stride = self.resized_hw(tuple(image_rgb.shape[:2])), self.backbone.stride
        if min(size_hw) < stride:
            raise ImageReadError(
                f"a photo of {image_rgb.shape[1]}x{image_rgb.shape[0]} px becomes {size_hw[1]}x{size_hw[0]} px, but "
                f"RegionCLIP needs {stride} px of either side; cut the photo, or raise max_size={self.max_size}"
            )
        pixels = self.resize(image_rgb).to(self.device)[None].float() / 255
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return self.backbone.features(((pixels - mean) / std).to(self.backbone.attnpool.positional_embedding.dtype))

    @torch.inference_mode()
    def region_features(self, image_rgb: NDArray[np.uint8] | Tensor, boxes_xyxy: Boxes) -> Tensor:
        """Features of boxes; the photo goes through the network once, `region_batch` boxes at a time through its end.

        Args:
            image_rgb: (H, W, 3) uint8 RGB, upright.
            boxes_xyxy: (R, 4) in pixels of it, in any order. A box of no area has features that mean nothing: drop it.

        Returns:
            (R, D), not normalised.

        Raises:
            ImageReadError: the photo is too thin, see `image_features`.
        """
        boxes = self._boxes_at(boxes_xyxy, tuple(image_rgb.shape[:2]))
        found = [
            torch.zeros((0, self.dim), device=self.device, dtype=self.backbone.attnpool.positional_embedding.dtype)
        ]
        if len(boxes):
            features = self.image_features(image_rgb)
            for part in boxes.to(self.device).split(self.region_batch):
                # Coordinates are too coarse in half precision, and the operator wants one dtype.
                maps = self.backbone.read_boxes(features.float(), part).to(features.dtype)
                found.append(self.backbone.pool(maps))
        return torch.cat(found)

    @torch.inference_mode()
    def encode_tokens(self, ids: Tensor) -> Tensor:
        """(T, L) ids of CLIP's vocabulary, padded with zeros -> (T, D), not normalised.

        Each text is read at its largest id. A text that was cut without its end id is therefore read at its start, and
        all such texts get one and the same vector: cut texts before their end id.

        Raises:
            ConfigError: the checkpoint has no text network.
        """
        if self.lang_encoder is None:
            raise ConfigError(
                "this checkpoint has no text network (fine-tuned ones have none); take the pretrained one of the same "
                "size, or class embeddings from a file"
            )
        return self.lang_encoder(ids.to(self.device))

    def _boxes_at(self, boxes_xyxy: Boxes, image_hw: tuple[int, int]) -> Tensor:
        """(R, 4) float32 boxes in pixels of the resized photo, clipped to it."""
        (height, width), (new_height, new_width) = image_hw, self.resized_hw(image_hw)
        scale = np.array([new_width / width, new_height / height] * 2)
        limits = np.array([new_width, new_height] * 2, dtype=np.float64)
        return torch.from_numpy(np.clip(boxes_to_array(boxes_xyxy) * scale, 0, limits)).float()


def _fill(network: Any, tensors: dict[str, Tensor], prefix: str, parts: tuple[str, ...], path: str) -> Any:
    """A network of the sizes of the tensors under a prefix, with all of them in it."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    own = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    absent = [name for name in parts if name not in own]
    if absent:
        raise EncoderLoadError(
            f"{path}: no tensor {prefix}{absent[0]} ({len(absent)} such); expected a ResNet of RegionCLIP, such as "
            "regionclip_pretrained-cc_rn50.pth. ViT, Swin and other branches of RegionCLIP are not implemented"
        )
    sizes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    try:
        with torch.device("meta"):
            model = network(sizes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise EncoderLoadError(f"{path}: tensors under {prefix} do not fit together: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for what, names in (
        ("no tensor", [name for name in expected if name not in sizes]),
        ("unknown tensor", [name for name in sizes if name not in expected]),
        ("another shape of tensor", [name for name in sizes if expected.get(name, sizes[name]) != sizes[name]]),
        ("not finite: tensor", [name for name, tensor in own.items() if not torch.isfinite(tensor).all()]),
    ):
        if names:
            raise EncoderLoadError(f"{path}: {what} {prefix}{names[0]} ({len(names)} such). Get the file anew")
    if prefix == IMAGE_PREFIX and (model.attnpool.side**2 + 1, 0) != (
        sizes["attnpool.positional_embedding"][0],
        sizes["attnpool.positional_embedding"][1] % CHANNELS_PER_HEAD,
    ):
        raise EncoderLoadError(f"{path}: {prefix}attnpool.positional_embedding is of no square map, or of odd width")
    model.load_state_dict({name: tensor.float() for name, tensor in own.items()}, assign=True)
    return model
