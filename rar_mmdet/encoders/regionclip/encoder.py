"""RegionCLIP as the retriever's encoder: boxes by one forward pass per photo."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.boxes import Boxes
from rar_mmdet.encoders.lazy import LazyEncoder, check_crops
from rar_mmdet.encoders.region_pooling import check_boxes
from rar_mmdet.encoders.regionclip.model import RegionClip
from rar_mmdet.errors import EncoderLoadError
from rar_mmdet.files.checkpoints import file_sha256
from rar_mmdet.files.images import ImageSource, photo_hw, read_image

__all__ = ["RegionClipEncoder"]

logger = logging.getLogger(__name__)

VOCABULARY = 49408  # of CLIP's tokenizer, which open_clip brings along


class RegionClipEncoder(LazyEncoder[RegionClip]):
    """Boxes of a photo and texts to unit vectors by a pretrained RegionCLIP (arXiv 2112.09106), RN50 or RN50x4.

    Texts that are too long are cut and keep their end token; in the authors' code they lose it, and all of them get one
    and the same vector.

    Args:
        checkpoint: a published file with a text network, such as regionclip_pretrained-cc_rn50.pth; `.safetensors` too.
        min_size, max_size: what photos are resized to; the published values.
        device, precision, batch_size: as `LazyEncoder`; fp32 everywhere if not told.
    """

    gpu_precision = "fp32"  # the published numbers are of fp32
    image_size = 224  # of crops, which only exemplars without a photo need; they are enlarged to `min_size`

    def __init__(
        self,
        *,
        checkpoint: str | Path,
        min_size: int = 800,
        max_size: int = 1333,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(device, precision, batch_size)
        self.checkpoint = Path(checkpoint).expanduser()
        self.min_size, self.max_size = min_size, max_size
        self._told_of_cut_texts = False

    def __repr__(self) -> str:
        return f"RegionClipEncoder(checkpoint={str(self.checkpoint)!r}, precision={self.precision!r})"

    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""
        if self.checkpoint.is_file():
            return []
        return [
            f"RegionCLIP checkpoint {self.checkpoint.absolute()}\n  get regionclip_pretrained-cc_rn50.pth (or rn50x4) "
            "from the model zoo of github.com/microsoft/RegionCLIP and put it there, or correct `checkpoint`"
        ]

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return self._ready()[0].dim

    @property
    def logit_scale(self) -> float:
        """100: the published configs divide cosines by 0.01."""
        return 100.0

    @property
    def fingerprint(self) -> str:
        """Hash of the checkpoint, what photos are resized to, and precision; free of places."""
        self._expect_assets()
        digest = file_sha256(self.checkpoint)[:16]
        return f"regionclip@{digest}:regions:{self.min_size}-{self.max_size}:{self._precision}"

    @torch.inference_mode()
    def encode_regions(self, image: ImageSource, boxes_xyxy: Boxes) -> Tensor:
        """Unit vectors of boxes of one photo, see `RegionEncoder`.

        Raises:
            InvalidBoxError: a box is not finite, has no area or lies outside the photo.
        """
        photo = read_image(image)
        boxes = check_boxes(boxes_xyxy, photo_hw(photo))
        model, device = self._ready()
        with torch.autocast(device.type, enabled=False):
            return self._unit(model.region_features(photo, boxes))

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors: each a photo with one box, the whole of it."""
        check_crops(crops)
        _, device = self._ready()
        vectors = [torch.zeros((0, self.dim), device=device)]
        for crop in crops:
            side = float(crop.shape[-1])
            vectors.append(self.encode_regions(crop, [[0.0, 0.0, side, side]]))
        return torch.cat(vectors)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors of T texts; those too long are cut, and warned of once."""
        from open_clip.tokenizer import SimpleTokenizer

        model, device = self._ready()
        assert model.lang_encoder is not None, "checked by _read"
        length = len(model.lang_encoder.positional_embedding)
        tokenizer = SimpleTokenizer(context_length=length)
        texts = list(texts)
        self._warn_of_cut_texts(texts, tokenizer, length)
        # Texts of like length share a batch, because columns that are padding throughout are left out.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.zeros((len(texts), self.dim), device=device)
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(texts), self.batch_size):
                rows = order[start : start + self.batch_size]
                out[rows] = self._unit(model.encode_tokens(tokenizer([texts[i] for i in rows])))
        return out

    def _warn_of_cut_texts(self, texts: Sequence[str], tokenizer: Any, length: int) -> None:
        # A token covers at least one byte, so only texts of more bytes than tokens allowed need counting.
        cut = [t for t in texts if len(t.encode()) + 2 > length and len(tokenizer.encode(t)) + 2 > length]
        if cut and not self._told_of_cut_texts:
            self._told_of_cut_texts = True
            logger.warning(
                "%d of %d texts exceed %d tokens and are cut, e.g. %.80r", len(cut), len(texts), length, cut[0]
            )

    def _read(self, device: torch.device, dtype: torch.dtype) -> RegionClip:
        model = RegionClip.from_checkpoint(self.checkpoint, self.min_size, self.max_size)
        if model.lang_encoder is None:
            raise EncoderLoadError(
                f"{self.checkpoint} has no text network: it is a fine-tuned checkpoint. Take the pretrained one of the "
                "same size, regionclip_pretrained-cc_rn50.pth or -cc_rn50x4.pth"
            )
        vocabulary = model.lang_encoder.token_embedding.num_embeddings
        if vocabulary != VOCABULARY:
            raise EncoderLoadError(
                f"{self.checkpoint}: its text network knows {vocabulary} tokens, CLIP's tokenizer has {VOCABULARY}"
            )
        return model.to(device, dtype)
