"""FG-CLIP 2 as the retriever's encoder: of crops, or of boxes by one forward pass per photo."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from rar_mmdet.boxes import Boxes
from rar_mmdet.encoders.lazy import LazyEncoder, check_crops, check_tokenizer
from rar_mmdet.encoders.region_pooling import check_boxes
from rar_mmdet.encoders.weights import VOCABULARIES
from rar_mmdet.errors import ConfigError, EncoderLoadError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.files.images import ImageSource, photo_hw, read_image

__all__ = ["FGCLIP2Encoder", "FGCLIP2RegionEncoder"]

logger = logging.getLogger(__name__)


class _Parts(NamedTuple):
    model: Any
    tokenizer: Any


class FGCLIP2Encoder(LazyEncoder[_Parts]):
    """Crops and texts to unit vectors by FG-CLIP 2 (arXiv 2510.10921), natively: no remote code is run.

    Args:
        model: folder of a published checkpoint (config.json, model.safetensors, tokenizer), or a hub id such as
            'qihoo360/fg-clip2-base' whose files lie in the local hub cache. Nothing is downloaded.
        revision: branch, tag or commit of the hub id.
        walk: which of the three text heads: 'short', 'box' (for regions) or 'long' (up to `longtext_len` tokens).
            `None`: 'short' for crops, 'box' for regions, as the authors advise.
        image_size: S, side of the crops; `None`: the side of the position table, 256 px for published models.
            Larger crops get more patches, by the authors' rule, up to 1,024.
        device, precision, batch_size: as `LazyEncoder`; on a GPU bf16, in which the model was trained.

    Raises:
        ConfigError: a value is of no use.
    """

    gpu_precision = "bf16"
    kind = "crops"
    default_walk = "short"
    max_patches: int | None = None  # patches per picture; None: the authors' rule by its size

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        walk: str | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(device, precision, batch_size)
        if walk not in (None, "short", "box", "long"):
            raise ConfigError(f"walk must be 'short', 'box', 'long' or None, got {walk!r}")
        if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
            raise ConfigError(f"image_size must be a whole number of pixels, got {image_size!r}")
        self.checkpoint = Checkpoint(str(model), revision, what="FG-CLIP 2 model", error=EncoderLoadError)
        self.walk = walk or self.default_walk
        self._image_size = image_size
        self._told_of_cut_texts = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.checkpoint.model!r}, walk={self.walk!r})"

    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""
        missing = self.checkpoint.missing()
        folder = self.checkpoint.folder
        if folder.is_dir() and not any((folder / name).is_file() for name in VOCABULARIES):
            missing.append(f"FG-CLIP 2 model {self.checkpoint.model!r}: no tokenizer (tokenizer.json) in {folder}; "
                           "get the complete model folder")  # fmt: skip
        return missing

    @property
    def config(self) -> Any:
        """The `Fgclip2Config` of its config.json.

        Raises:
            EncoderLoadError: it is the config of another model.
        """
        from rar_mmdet.encoders.fgclip2 import Fgclip2Config

        self._expect_assets()
        content = self.checkpoint.config
        if content.get("model_type") != Fgclip2Config.model_type:
            named = f"{content.get('architectures')} {content.get('auto_map')} {content.get('model_type')}".lower()
            what = "FG-CLIP 1, another network" if "fgclip" in named else f"model_type {content.get('model_type')!r}"
            raise EncoderLoadError(
                f"{self.checkpoint.folder} holds {what}; only FG-CLIP 2 is implemented (config.json with model_type "
                "'fgclip2'), e.g. qihoo360/fg-clip2-base. Other models: OpenClipEncoder"
            )
        return Fgclip2Config.from_dict(content)

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return int(self.config.vision_config.hidden_size)

    @property
    def image_size(self) -> int:
        """S, side in pixels of the crops it is made for."""
        vision = self.config.vision_config
        return self._image_size or round(vision.num_patches**0.5) * int(vision.patch_size)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by; the learned bias cancels in a softmax over names."""
        return float(self._ready()[0].model.logit_scale.detach().float().exp().item())

    @property
    def fingerprint(self) -> str:
        """Hash of the model's files, what is encoded and how; free of places."""
        self._expect_assets()
        return f"fgclip2@{self.checkpoint.fingerprint[:16]}:{self.kind}:{self.walk}:{self._size_name}:{self._precision}"

    @property
    def _size_name(self) -> str:
        return str(self.image_size)

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors on the encoder's device; R may be 0."""
        check_crops(crops)
        parts, device = self._ready()
        vectors = [torch.zeros((0, self.dim), device=device)]
        with torch.autocast(device.type, enabled=False):
            for batch in crops.split(self.batch_size) if len(crops) else ():
                vectors.append(self._unit(self._crop_vectors(parts.model, self._patches(batch.to(device)))))
        return torch.cat(vectors)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors of T texts in lower case; those too long are cut, and warned of once."""
        from rar_mmdet.encoders.fgclip2 import tokenize

        parts, device = self._ready()
        text = parts.model.config.text_config
        length = text.longtext_len if self.walk == "long" else text.max_position_embeddings
        texts, vectors = list(texts), [torch.zeros((0, self.dim), device=device)]
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(texts), self.batch_size):
                batch = texts[start : start + self.batch_size]
                with self._lock:  # tokenizers hold state
                    ids, cut = tokenize(parts.tokenizer, batch, length)
                if cut:
                    self._warn_of_cut_texts(cut, length, max(batch, key=len))
                # No attention mask: padding is part of the input the model was trained with.
                vectors.append(self._unit(parts.model.get_text_features(ids.to(device), walk_type=self.walk)))
        return torch.cat(vectors)

    def _warn_of_cut_texts(self, cut: int, length: int, example: str) -> None:
        if not self._told_of_cut_texts:
            self._told_of_cut_texts = True
            advice = "" if self.walk == "long" else "; walk='long' takes longer ones"
            logger.warning("%d texts exceed %d tokens and are cut, e.g. %.80r%s", cut, length, example, advice)

    def _crop_vectors(self, model: Any, patches: dict[str, Tensor]) -> Tensor:
        return model.get_image_features(**patches)

    def _patches(self, crops: Tensor) -> dict[str, Tensor]:
        """Square crops as the tower takes them; all have the same grid, so there is no padding."""
        from rar_mmdet.encoders.fgclip2 import grid_of, patch_budget

        size, side = self.config.vision_config.patch_size, crops.shape[-1]
        rows, columns = grid_of((side, side), self.max_patches or patch_budget((side, side), size), size)
        pixels = crops.float()
        if (rows * size, columns * size) != tuple(crops.shape[-2:]):
            # Antialiased and in 8 bits, as PIL resizes.
            target = (rows * size, columns * size)
            pixels = F.interpolate(pixels, target, mode="bilinear", antialias=True, align_corners=False)
            pixels = pixels.round_().clamp_(0, 255)
        values = (pixels / 255 - 0.5) / 0.5
        cells = values.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([[rows, columns]]).repeat(len(crops), 1)
        return {"pixel_values": cells.reshape(len(crops), rows * columns, -1), "spatial_shapes": shapes}

    def _read(self, device: torch.device, dtype: torch.dtype) -> _Parts:
        from safetensors import SafetensorError
        from transformers import AutoTokenizer

        from rar_mmdet.encoders.fgclip2 import Fgclip2Model

        config, folder = self.config, self.checkpoint.folder
        try:
            model = Fgclip2Model.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except SafetensorError as error:
            raise EncoderLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            raise EncoderLoadError(f"{folder} could not be loaded as FG-CLIP 2: {error}. Download it again") from error
        check_tokenizer(tokenizer, config.text_config.vocab_size, str(folder))
        bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        if bad:
            raise EncoderLoadError(f"{folder}: not finite: {', '.join(bad[:3])} ({len(bad)} tensors). Get it anew")
        return _Parts(model.to(device).eval().requires_grad_(False), tokenizer)


class FGCLIP2RegionEncoder(FGCLIP2Encoder):
    """Boxes of a photo by one forward pass: FG-CLIP 2's dense features, averaged over each box.

    The photo is seen whole, so a box has its surroundings and costs next to nothing. Cosines are multiplied by 100, as
    in the authors' script for LVIS boxes; their learned scale and bias are not used there.

    Args:
        max_patches: patches per photo; `None`: the authors' rule by the photo's size, 128 to 1,024.
        model, revision, walk, image_size, device, precision, batch_size: as `FGCLIP2Encoder`.
    """

    kind = "regions"
    default_walk = "box"

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        walk: str | None = None,
        image_size: int | None = None,
        max_patches: int | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(
            model=model,
            revision=revision,
            walk=walk,
            image_size=image_size,
            device=device,
            precision=precision,
            batch_size=batch_size,
        )
        if max_patches is not None and (not isinstance(max_patches, int) or max_patches < 1):
            raise ConfigError(f"max_patches must be a whole number of at least 1, got {max_patches!r}")
        self.max_patches = max_patches

    @property
    def logit_scale(self) -> float:
        """100, as in the authors' script for boxes."""
        return 100.0

    @property
    def _size_name(self) -> str:
        return "published" if self.max_patches is None else str(self.max_patches)

    @torch.inference_mode()
    def encode_regions(self, image: ImageSource, boxes_xyxy: Boxes) -> Tensor:
        """Unit vectors of boxes of one photo.

        Args:
            image: what `rar_mmdet.files.read_image` takes; the original, upright photo.
            boxes_xyxy: (R, 4) in pixels of it; R may be 0.

        Returns:
            (R, D) float32 on the encoder's device.

        Raises:
            InvalidBoxError: a box is not finite, has no area or lies outside the photo.
        """
        from rar_mmdet.encoders.fgclip2 import prepare_images

        photo = read_image(image)
        boxes = check_boxes(boxes_xyxy, photo_hw(photo))
        parts, device = self._ready()
        if not len(boxes):
            return torch.zeros((0, self.dim), device=device)
        inputs = prepare_images([photo], self.config.vision_config.patch_size, self.max_patches)
        with torch.autocast(device.type, enabled=False):
            (vectors,) = parts.model.get_image_region_features(
                **{name: tensor.to(device) for name, tensor in inputs.items()},
                image_sizes=[photo_hw(photo)],
                region_infos=[boxes],
            )
            return self._unit(vectors)

    def _crop_vectors(self, model: Any, patches: dict[str, Tensor]) -> Tensor:
        """A crop is a photo with one box, the whole of it."""
        shapes = patches["spatial_shapes"].tolist()
        boxes = [[[0.0, 0.0, float(columns), float(rows)]] for rows, columns in shapes]
        return torch.cat(model.get_image_region_features(**patches, image_sizes=shapes, region_infos=boxes))
