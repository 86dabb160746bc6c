"""Any vision model of timm as an encoder of photos: DINOv2 and others that know no texts, for memories of exemplars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rar_mmdet.encoders.lazy import CheckpointEncoder, check_crops
from rar_mmdet.encoders.transformers_encoder import IMAGE_ONLY_TEMPERATURE
from rar_mmdet.errors import ConfigError, EncoderLoadError

__all__ = ["TimmEncoder"]


class TimmEncoder(CheckpointEncoder[Any]):
    """Crops to unit vectors by a vision model of timm: its pooled features, without a classifier.

    Crops are made at the model's own size and normalised by its own mean and deviation; timm's `crop_pct`, which cuts
    the rim off photos that are evaluated for ImageNet, is left out, as the cropper has framed the object already.
    Nothing is downloaded and nothing is unpickled: weights are `.safetensors`.

    Args:
        model: folder with config.json and model.safetensors as timm publishes them, or a hub id such as
            'timm/vit_base_patch14_dinov2.lvd142m' whose files lie in the local hub cache.
        revision: branch, tag or commit of the hub id.
        device, precision, batch_size: as `CheckpointEncoder`.

    Raises:
        ConfigError: a value is of no use.
    """

    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""
        return self.checkpoint.missing()

    @property
    def dim(self) -> int:
        """D, the length of the vectors; the model is loaded for it."""
        return int(self._ready()[0].head_hidden_size)

    @property
    def image_size(self) -> int:
        """S in pixels.

        Raises:
            EncoderLoadError: the model takes oblong images.
        """
        _, height, width = self._preprocessing("input_size")
        if height != width:
            raise EncoderLoadError(f"{self.checkpoint.model} takes images of {height} x {width}, not squares")
        return int(height)

    @property
    def logit_scale(self) -> float:
        """1 / 0.07, as in DINOv2's own k-NN evaluation: a model without texts learns no scale."""
        return 1 / IMAGE_ONLY_TEMPERATURE

    @property
    def fingerprint(self) -> str:
        """Architecture, hash of the model's files and precision; free of places."""
        return f"timm:{self._architecture}@{self.checkpoint.fingerprint[:16]}:{self._precision}"

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) uint8 RGB -> (R, D) float32 unit vectors on the encoder's device; R may be 0."""
        check_crops(crops)
        model, device = self._ready()
        mean, deviation = (
            torch.tensor(self._preprocessing(key), device=device).view(3, 1, 1) for key in ("mean", "std")
        )
        dtype = next(model.parameters()).dtype
        vectors = [torch.zeros((0, self.dim), device=device)]
        with torch.autocast(device.type, enabled=False):
            for batch in crops.split(self.batch_size) if len(crops) else ():
                pixels = (batch.to(device).float() / 255 - mean) / deviation
                vectors.append(self._unit(model(pixels.to(dtype))))
        return torch.cat(vectors)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Models of timm have no text tower.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self.checkpoint.model} encodes images alone, it has no text tower; use a memory of exemplars with it, "
            "not one of names"
        )

    @property
    def _architecture(self) -> str:
        self._expect_assets()
        name = self.checkpoint.config.get("architecture")
        if not isinstance(name, str):
            raise EncoderLoadError(
                f"{self.checkpoint.folder / 'config.json'} names no `architecture`: it is no model of timm. Models of "
                "transformers: TransformersEncoder; of open_clip: OpenClipEncoder"
            )
        return name

    def _preprocessing(self, key: str) -> tuple[Any, ...]:
        from timm.data import resolve_data_config

        self._expect_assets()
        return tuple(resolve_data_config(pretrained_cfg=self.checkpoint.config.get("pretrained_cfg", {}))[key])

    def _read(self, device: torch.device, dtype: torch.dtype) -> Any:
        import timm
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        name, folder = self._architecture, self.checkpoint.folder
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
            # By ourselves: timm leaves what the file lacks at random, without a word, where the classifier is left out.
            absent = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys
        except SafetensorError as error:
            raise EncoderLoadError(f"a weight file in {folder} is damaged: {error}. Download it again") from error
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise EncoderLoadError(f"{folder} could not be loaded as timm's {name}: {error}") from error
        self._check_weights(model, absent)
        return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
