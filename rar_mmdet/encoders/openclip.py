"""Any open_clip model as the retriever's encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from rar_mmdet.encoders.lazy import LazyEncoder, check_crops
from rar_mmdet.encoders.openclip_texts import can_share, encode_shared
from rar_mmdet.encoders.weights import (
    LOCAL_PREFIX,
    WeightsSource,
    check_weights_fit,
    fetch,
    locate,
    root_logging_untouched,
)
from rar_mmdet.errors import ConfigError, EncoderLoadError, MissingAssetError

__all__ = ["OpenClipEncoder"]

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 1 << 16  # tokenised and sorted together (ours): 40 MB of tokens
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # torchvision's values


@dataclass
class _Loaded:
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    mean: Tensor  # (1, 3, 1, 1), on the device
    std: Tensor
    interpolation: str
    text_trim: tuple[str, str] | None  # parameter and buffer to cut for short texts, see `_trimmable`
    text_tower: Any = None  # where what texts begin with alike is computed once, see `openclip_texts`


class OpenClipEncoder(LazyEncoder[_Loaded]):
    """Crops and texts to unit vectors, by any model open_clip knows, with the model's own preprocessing.

    It loads at first use, stays outside `nn.Module` registration (DDP, `state_dict` and `.to` must not touch it), and
    copies or pickles as its arguments alone. Threads may share it. An autocast around it changes nothing: the precision
    is the one it was given.

    Args:
        model: an open_clip name ('ViT-B-16'), 'local-dir:FOLDER' (open_clip_config.json + weights + tokenizer), or
            'hf-hub:ORG/NAME'.
        pretrained: for a name: a tag of open_clip ('openai') or a file of weights; for folders and repositories `None`.
        device: where it runs when `load` is not told; `None`: the first GPU, else the CPU.
        precision: 'fp32', 'fp16' or 'bf16'; `None`: fp16 on a GPU (as OpenAI's CLIP runs), fp32 on the CPU.
        batch_size: crops or texts per forward pass.
        cache_dir: folder of downloaded weights; `None`: the hub's own (`HF_HOME`).
        allow_download: let open_clip fetch missing weights; otherwise they are reported.
        statistics: 'imagenet': pixels are normalised by ImageNet's mean and deviation, as FineR's evaluator does for
            four of its five sets; `None`: by the model's own, which it was trained with.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int = 256,
        cache_dir: str | None = None,
        allow_download: bool = False,
        statistics: str | None = None,
    ) -> None:
        super().__init__(device, precision, batch_size)
        if statistics not in (None, "imagenet"):
            raise ConfigError(f"statistics must be 'imagenet' or None (the model's own), got {statistics!r}")
        self.statistics = statistics
        self.model, self.pretrained = model, pretrained
        self.cache_dir, self.allow_download = cache_dir, allow_download
        self._source: WeightsSource | None = None
        self._told_of_cut_texts = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_source": None}

    def __repr__(self) -> str:
        return f"OpenClipEncoder(model={self.model!r}, pretrained={self.pretrained!r}, precision={self.precision!r})"

    def missing_assets(self) -> list[str]:
        """What must be fetched before this encoder can load: what, where it is looked for, how to get it. Cheap."""
        missing = list(locate(self.model, self.pretrained, self.cache_dir).missing)
        return [] if self.allow_download and not self.model.startswith(LOCAL_PREFIX) else missing

    @property
    def image_size(self) -> int:
        """Side of the square crops the model was trained on, in pixels."""
        height, width = self._image_hw()
        if height != width:
            raise EncoderLoadError(
                f"{self.model} takes {height}x{width} images; crops are square, choose another model"
            )
        return height

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return int(self._ready_source().config["model_cfg"]["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """The learned scale of cosines, 1 / τ (100 for OpenAI's CLIP)."""
        return float(self._ready()[0].model.logit_scale.detach().float().exp().item())

    @property
    def logit_bias(self) -> float | None:
        """The learned bias of SigLIP-type models, else `None`. It cancels in a softmax over categories."""
        bias = getattr(self._ready()[0].model, "logit_bias", None)
        return None if bias is None else float(bias.detach().float().item())

    @property
    def fingerprint(self) -> str:
        """Model, hash of its architecture, preprocessing, weights and tokenizer, and precision; free of places.

        Precision is part of it because half precision moves vectors a little. Before it is loaded, this is the
        precision on the device that `load` chooses without being told.
        """
        source = self._ready_source()
        pixels = "" if self.statistics is None else f":{self.statistics}"
        return f"{source.label}@{source.digest()}:{self._precision}{pixels}"

    @torch.inference_mode()
    def encode_images(self, crops: Tensor) -> Tensor:
        """Unit vectors of crops.

        Args:
            crops: (R, 3, S, S) uint8 RGB on any device; resized (antialiased) when S is not `image_size`.

        Returns:
            (R, D) float32 on the encoder's device.
        """
        check_crops(crops)
        state, _ = self._ready()
        vectors = [torch.zeros((0, self.dim), device=state.device)]
        with torch.autocast(state.device.type, enabled=False):
            for batch in crops.split(self.batch_size) if len(crops) else ():
                pixels = self._preprocess(batch, state)
                vectors.append(self._unit(state.model.encode_image(pixels)))
        return torch.cat(vectors)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) float32 unit vectors of T texts; those beyond the context length are cut, and warned of once."""
        state, _ = self._ready()
        texts = list(texts)
        out = torch.zeros((len(texts), self.dim), device=state.device)
        # One thread at a time: tokenizers, and a model whose tensors are exchanged for a call, hold state.
        with self._lock, torch.autocast(state.device.type, enabled=False):
            self._warn_of_cut_texts(texts, state)
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = state.tokenizer(texts[first : first + TEXTS_AT_ONCE])
                if state.text_tower is not None:
                    ends = tokens.argmax(dim=1)  # the end token has the highest id of CLIP's vocabulary
                    features = encode_shared(state.text_tower, tokens.to(state.device), ends + 1, self.batch_size)
                    out[first : first + len(tokens)] = self._unit(features)
                    continue
                # Texts of as many tokens share a batch: `_encode_tokens` drops the columns that are padding throughout.
                lengths = torch.zeros(len(tokens)) if state.text_trim is None else tokens.argmax(dim=1)
                for rows in lengths.argsort(stable=True).split(self.batch_size):
                    out[first + rows] = self._unit(_encode_tokens(state, tokens[rows].to(state.device)))
        return out

    def _ready_source(self) -> WeightsSource:
        with self._lock:
            if self._source is None:
                source = locate(self.model, self.pretrained, self.cache_dir)
                if source.missing and self.allow_download:
                    fetch(self.model, self.pretrained, self.cache_dir)
                    source = locate(self.model, self.pretrained, self.cache_dir)
                if source.missing:
                    raise MissingAssetError("missing:\n" + "\n".join(source.missing))
                self._source = source
            return self._source

    def _image_hw(self) -> tuple[int, int]:
        size = self._ready_source().config["model_cfg"]["vision_cfg"].get("image_size", 224)
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def _read(self, device: torch.device, dtype: torch.dtype) -> _Loaded:
        source, precision = self._ready_source(), self._precision_on(device)
        assert source.checkpoint is not None
        try:
            with root_logging_untouched():
                model, tokenizer = _create(source, self.model, device, precision)
        except Exception as error:  # open_clip re-raises everything from OSError to pickle errors in its own words
            raise EncoderLoadError(f"{self.model} ({self.pretrained}) could not be loaded: {error}") from error
        check_weights_fit(source.checkpoint, model, source.label)
        model.eval().requires_grad_(False)
        preprocess = model.visual.preprocess_cfg | (IMAGENET if self.statistics else {})
        trim = _trimmable(model)
        tower = getattr(model, "text", model)
        # Grouping texts takes the time that it spares where columns are as cheap as on a GPU.
        shares = trim is not None and device.type == "cpu" and can_share(tower)
        logger.info("encoder %s on %s in %s, %s", source.label, device, precision, source.digest())
        return _Loaded(
            model=model,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            mean=torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1),
            std=torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1),
            interpolation=preprocess["interpolation"],
            text_trim=trim,
            text_tower=tower if shares else None,
        )

    def _preprocess(self, crops: Tensor, state: _Loaded, size_hw: tuple[int, int] | None = None) -> Tensor:
        size_hw = size_hw or self._image_hw()
        pixels = crops.to(state.device).float() / 255
        if tuple(crops.shape[-2:]) != size_hw:
            mode = state.interpolation if state.interpolation in ("bicubic", "bilinear") else "bicubic"
            # Antialiased, as PIL resizes; overshoot of the cubic is clamped as it is in 8 bits.
            pixels = F.interpolate(pixels, size_hw, mode=mode, antialias=True, align_corners=False).clamp_(0, 1)
        return pixels.sub_(state.mean).div_(state.std).to(state.dtype)

    def _warn_of_cut_texts(self, texts: Sequence[str], state: _Loaded) -> None:
        if self._told_of_cut_texts:
            return
        limit = state.tokenizer.context_length
        # A token covers at least one byte, so only texts of more bytes than tokens allowed need counting.
        suspects = [text for text in texts if len(text.encode()) + 2 > limit]
        cut = [text for text in suspects if _num_tokens(state.tokenizer, text) > limit]
        if cut:
            self._told_of_cut_texts = True
            logger.warning(
                "%d of %d texts exceed %d tokens and are cut, e.g. %.80r", len(cut), len(texts), limit, cut[0]
            )


def _create(source: WeightsSource, name: str, device: torch.device, precision: str) -> tuple[Any, Any]:
    """Model and tokenizer from the files that were found, so that nothing is fetched and nothing else is read."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    # Weights trained with QuickGELU need it whatever the model's name says; open_clip 3 only warns of a mismatch, so
    # that "ViT-B-16" with OpenAI's weights would run with another activation than they were trained with.
    tag, text = source.config.get("tag", {}), dict(source.text_config)
    settings: dict[str, Any] = {}
    if source.text_tower is not None:
        settings["text_cfg"] = text | {"hf_model_name": str(source.text_tower), "hf_model_pretrained": False}
    model = open_clip.create_model(
        f"{LOCAL_PREFIX}{source.folder}" if source.folder is not None else name,
        pretrained=None if source.folder is not None else str(source.checkpoint),
        precision=precision,
        device=device,
        force_quick_gelu=bool(tag.get("quick_gelu")),
        force_preprocess_cfg={key: value for key, value in tag.items() if key != "size"},
        pretrained_text=False,
        require_pretrained=True,
        weights_only=True,
        **settings,
    )
    if source.tokenizer is None:
        return model, open_clip.get_tokenizer(name if source.folder is None else f"{LOCAL_PREFIX}{source.folder}")
    tokenizer = HFTokenizer(
        str(source.tokenizer),
        context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        local_files_only=True,
        **text.get("tokenizer_kwargs", {}),
    )
    return model, tokenizer


def _num_tokens(tokenizer: Any, text: str) -> int:
    inner = getattr(tokenizer, "tokenizer", None)  # HFTokenizer and SigLipTokenizer wrap one of transformers
    if inner is None:
        return len(tokenizer.encode(text)) + 2  # start and end token
    return len(inner(tokenizer.clean_fn(text), truncation=False).input_ids)


def _trimmable(model: Any) -> tuple[str, str] | None:
    """Names of position embedding and causal mask, where cutting trailing padding cannot change the result.

    True of CLIP's own text tower: attention is causal and the text's vector is read at its end token, so what comes
    after has no say. 77 columns become about 12, which makes a CPU several times faster.
    """
    tower, prefix = (model.text, "text.") if hasattr(model, "text") else (model, "")
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if pool != "argmax" or getattr(tower, "attn_mask", None) is None or getattr(tower, "cls_emb", None) is not None:
        return None
    return f"{prefix}positional_embedding", f"{prefix}attn_mask"


def _encode_tokens(state: _Loaded, tokens: Tensor) -> Tensor:
    if state.text_trim is None:
        return state.model.encode_text(tokens)
    position, mask = state.text_trim
    length = int(tokens.argmax(dim=1).max()) + 1  # the end token has the highest id of CLIP's vocabulary
    tensors = {
        position: state.model.get_parameter(position)[:length],
        mask: state.model.get_buffer(mask)[:length, :length],
    }
    out = torch.func.functional_call(state.model, tensors, kwargs={"text": tokens[:, :length]})
    return out["text_features"] if isinstance(out, dict) else out[1]
