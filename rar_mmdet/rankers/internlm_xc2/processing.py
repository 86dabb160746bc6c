"""Images and prompts of InternLM-XComposer2-VL: PIL, NumPy and the checkpoint's own tokenizer file."""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file

from rar_mmdet.errors import MissingAssetError, RankerLoadError
from rar_mmdet.rankers.internlm_xc2.configuration import IXC2Config

__all__ = ["PROMPT_FORMS", "IXC2ImageProcessor", "IXC2Processor", "load_tokenizer"]

# The tower is CLIP's, and so are its statistics (arXiv 2103.00020, released code).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGE_TOKEN = "<ImageHere>"  # the authors' placeholder
TURN_START, TURN_END = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
# Turn marks, spaces and scripts: converted and original tokenizer must agree on it.
_PROBE = f"{TURN_START}user\nWhich  is it? 'traffic light', café 鸟\t3.5%{TURN_END}\n{TURN_START}assistant\nzebra"

# Per turn: [146]role, text, [145]. %s: what the form adds for parts that are no text.
_TURNS = (
    "{%- for message in messages %}{{ '" + TURN_START + "' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{ part['text'] }}"
    "%s{%- endif %}{%- endfor %}{%- endif %}"
    "{{ '" + TURN_END + "\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '" + TURN_START + "assistant\\n' }}{%- endif %}"
)
PROMPT_FORMS = {
    # As the authors evaluate (InternLM-XComposer-2.0/evaluation): one BOS, all images, then the turns.
    "evaluation": "{{ bos_token }}{%- for message in messages %}{%- if message['content'] is not string %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}"
    "{%- endif %}{%- endfor %}{%- endif %}{%- endfor %}" + _TURNS.replace("%s", ""),
    # As their chat(): the image inside the turn, and a second BOS behind it, where it tokenises the rest anew. Their
    # long default system text is left to a message of role 'system'.
    "chat": "{{ bos_token }}"
    + _TURNS.replace("%s", "{%- elif part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' + bos_token }}"),
}


class IXC2ImageProcessor(BaseImageProcessor):
    """Squash to a square, bicubic, and normalise; no regard to the aspect, as the model was trained.

    Args:
        size: {"height": S, "width": S}; 490 in the published VL checkpoint.
        image_mean, image_std: Of RGB in [0, 1].
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,  # bookkeeping keys of a saved preprocessor_config.json
    ) -> None:
        super().__init__(**kwargs)
        self.size = size or {"height": 490, "width": 490}
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(  # type: ignore[override]  # of the many options of transformers none applies
        self, images: Any, return_tensors: str | None = None
    ) -> BatchFeature:
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Images -> `pixel_values` (n, 3, S, S) float32.

        Args:
            images: One or several PIL images, (H, W, 3) uint8 RGB arrays or (3, H, W) uint8 RGB tensors.
            return_tensors: 'pt' for a tensor; None for a list of arrays.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        side = (self.size["width"], self.size["height"])
        mean, std = (np.asarray(v, np.float32) for v in (self.image_mean, self.image_std))
        values = []
        for image in images:
            pixels = np.asarray(_to_pil(image).resize(side, Image.Resampling.BICUBIC), np.float32) / 255
            values.append(((pixels - mean) / std).transpose(2, 0, 1).astype(np.float32))
        return BatchFeature({"pixel_values": np.stack(values) if values else []}, tensor_type=return_tensors)


def _to_pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"An image must be PIL, a (H, W, 3) uint8 array or a (3, H, W) uint8 tensor; got {type(image).__name__} "
            f"of shape {tuple(getattr(image, 'shape', ()))} and dtype {getattr(image, 'dtype', None)}."
        )
    return Image.fromarray(array)


class IXC2Processor(ProcessorMixin):
    """Chat template, tokenizer and images in one call; each `<ImageHere>` becomes N placeholder tokens.

    Args:
        image_processor: Squashes and normalises.
        tokenizer: With BOS, EOS, the turn marks and `<ImageHere>` as special tokens.
        chat_template: Jinja text; None for the evaluation form.
        num_image_tokens: N, tokens per image.
        image_token_id: What the model looks for at image positions.
    """

    def __init__(
        self,
        image_processor: IXC2ImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
        num_image_tokens: int = 1225,
        image_token_id: int | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or PROMPT_FORMS["evaluation"])
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE_TOKEN
        own_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_token_id = own_id if image_token_id is None else image_token_id

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts transformers saves and loads by themselves."""
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the hub options are one bundle here
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        prompt_form: str | None = None,
        **hub_options: Any,
    ) -> "IXC2Processor":
        """From a published, converted or saved folder; the published one has no processor files, only a tokenizer.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            prompt_form: 'evaluation' or 'chat'; None for the folder's `chat_template.jinja`, else 'evaluation'.
            **hub_options: Of transformers, for hub ids (revision, token, local_files_only ...).

        Raises:
            MissingAssetError: No tokenizer file.
            RankerLoadError: The tokenizer is another model's.
            ValueError: An unknown prompt form.
        """
        if prompt_form is not None and prompt_form not in PROMPT_FORMS:
            raise ValueError(f"prompt_form must be one of {sorted(PROMPT_FORMS)}, got {prompt_form!r}.")
        options = {k: v for k, v in hub_options.items() if k in ("revision", "token", "local_files_only", "cache_dir")}
        folder = Path(str(cached_file(pretrained_model_name_or_path, "config.json", **options))).parent
        if not Path(pretrained_model_name_or_path).is_dir():
            cached_file(pretrained_model_name_or_path, "tokenizer.model", **options)  # lands in the same folder
        config = IXC2Config.from_pretrained(folder)
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else None
        return cls(
            IXC2ImageProcessor(size={"height": config.img_size, "width": config.img_size}),
            load_tokenizer(folder),
            chat_template=PROMPT_FORMS[prompt_form] if prompt_form else template,
            num_image_tokens=config.num_image_tokens,
            image_token_id=config.image_token_id,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Model inputs of B texts.

        Args:
            images: Nested, one list per text; or flat, taken in reading order; or one image. None: text only.
            text: B texts, each with as many `<ImageHere>` as it has images.
            padding: As of a tokenizer: True pads to the longest.
            padding_side: 'left' (the default) or 'right'.
            add_special_tokens: Put a BOS before a text that has none; never a second one.
            return_tensors: 'pt' or None.

        Returns:
            `input_ids`, `attention_mask` and, where there are images, `pixel_values` (n, 3, S, S).

        Raises:
            ValueError: Images and placeholders of a text disagree.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise ValueError("text is needed: one prompt per crop, as apply_chat_template gives it.")
        groups = _group_images(images, [t.count(self.image_token) for t in texts])
        own_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        rows = []
        for one in texts:
            ids = self.tokenizer(one, add_special_tokens=False).input_ids
            if add_special_tokens and ids[:1] != [self.tokenizer.bos_token_id]:
                ids = [self.tokenizer.bos_token_id, *ids]
            rows.append(
                [i for t in ids for i in ([self.image_token_id] * self.num_image_tokens if t == own_id else [t])]
            )
        batch = self.tokenizer.pad(
            {"input_ids": rows}, padding=padding, padding_side=padding_side or "left", return_tensors=return_tensors
        )
        data = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        flat = [image for group in groups for image in group]
        if flat:
            data["pixel_values"] = self.image_processor(flat, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(data)


def _group_images(images: Any, counts: Sequence[int]) -> list[list[Any]]:
    """Images per text, checked against the placeholders."""
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if any(isinstance(group, (list, tuple)) for group in images):
        groups = [list(group or []) for group in images]
    else:
        flat = iter(images)
        groups = [list(islice(flat, count)) for count in counts[:-1]]
        groups.append(list(flat))
    given = [len(group) for group in groups]
    if given != list(counts):
        raise ValueError(
            f"Images and placeholders disagree: the texts hold {list(counts)} {IMAGE_TOKEN!r}, the images given are "
            f"{given}. Put one {IMAGE_TOKEN!r} per image (apply_chat_template does) and no such text into a question."
        )
    return groups


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer as a fast one: `tokenizer.json`, or the published `tokenizer.model` converted.

    A conversion is compared with SentencePiece itself on a probe, so a tokenizer it cannot express is refused.

    Raises:
        MissingAssetError: Neither file is there.
        RankerLoadError: It lacks the turn marks, or converts to other ids.
    """
    converted, original = folder / "tokenizer.json", folder / "tokenizer.model"
    if not converted.is_file() and not original.is_file():
        raise MissingAssetError(
            f"{folder} holds neither tokenizer.model (published) nor tokenizer.json (converted). Download "
            "tokenizer.model of the same checkpoint into it; docs/internlm_xc2.md lists the files."
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    absent = [token for token in (TURN_START, TURN_END) if token not in vocabulary]
    if absent:
        raise RankerLoadError(
            f"The tokenizer in {folder} knows no {', '.join(absent)}: it is not InternLM-XComposer2's. Take "
            "tokenizer.model from the checkpoint's own repository."
        )
    tokenizer.add_special_tokens(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "additional_special_tokens": [TURN_END, TURN_START, IMAGE_TOKEN],
        }
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.padding_side = "left"
    if not converted.is_file():
        _compare_with_sentencepiece(tokenizer, original)
    return tokenizer


def _compare_with_sentencepiece(tokenizer: PreTrainedTokenizerFast, original: Path) -> None:
    import sentencepiece

    expected = sentencepiece.SentencePieceProcessor(str(original)).encode(_PROBE)
    got = tokenizer(_PROBE, add_special_tokens=False).input_ids
    if got != expected:
        raise RankerLoadError(
            f"{original} could not be converted: SentencePiece gives {expected[:12]} ..., the converted tokenizer "
            f"{got[:12]} ... for the same text. Is it the tokenizer.model of InternLM-XComposer2-VL?"
        )
