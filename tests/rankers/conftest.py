"""Tiny random models of every supported family, with a byte-level BPE tokenizer trained on the spot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen3_vl import TINY_QWEN3_ROPE, TINY_QWEN3_VISION
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMProcessor,
)

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests, in importlib mode

FAMILIES = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
_CORPUS = [
    "USER: ASSISTANT: Human: Assistant: user assistant What is the object in the image? Yes No yes no",
    "Please play the role of a classification expert, and sort the provided categories from high to low",
    "Which of these is the object in the image? ['cat', 'dog', 'red car', 'hot dog', 'salt shaker']",
    "Which option is the object in the image? A. cat B. dog C. bird D. fish E. cow Answer with the letter.",
    "Is the object in the image a cat? Answer yes or no. tiger lily bird's nest teddy bear polar bear",
]
_SPECIALS = {
    "llava": ["<image>"],
    "llava_onevision": ["<image>", "<video>", "<|im_start|>", "<|im_end|>"],
    "qwen2_5_vl": [
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|im_start|>",
        "<|im_end|>",
    ],
    "internvl": ["<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<|im_start|>", "<|im_end|>"],
    "smolvlm": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"],
}
_SPECIALS["qwen3_vl"] = _SPECIALS["qwen2_5_vl"]
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: nothing is unknown, everything decodes to itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", *_SPECIALS[family]]
    bpe.train_from_iterator(
        _CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    end = {"llava": "</s>", "smolvlm": "<end_of_utterance>"}.get(family, "<|im_end|>")
    extra = {}
    if family == "internvl":
        extra = {
            "extra_special_tokens": {
                "context_image_token": "<IMG_CONTEXT>",
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "video_token": "<video>",
            }
        }
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=end,
        additional_special_tokens=None if extra else _SPECIALS[family],
        model_input_names=["input_ids", "attention_mask"],
        **extra,
    )


def save_tiny_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a complete random checkpoint of the family; no chat template, so that ours are used."""
    tokenizer = make_tokenizer(family)
    vocab = len(tokenizer)
    torch.manual_seed(seed)
    config, processor = getattr(_Builders, family)(tokenizer, {**_TEXT, "vocab_size": vocab})
    config.text_config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class _Builders:
    """One builder per family: (config, processor)."""

    @staticmethod
    def llava(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        size = 28
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**_VISION, image_size=size, patch_size=14),
            text_config=LlamaConfig(**text),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=4,
            vision_feature_select_strategy="default",
            vision_feature_layer=-2,
        )
        images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        return config, LlavaProcessor(
            images,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    @staticmethod
    def llava_onevision(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor

        size, pins = 28, [[28, 28], [28, 56], [56, 28]]
        config = LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                **{k: v for k, v in _VISION.items() if k != "initializer_range"},
                image_size=size,
                patch_size=14,
                vision_use_head=False,
            ),
            text_config=Qwen2Config(**text),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=pins,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
        side = {"height": size, "width": size}
        return config, LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pins),
            tokenizer,
            LlavaOnevisionVideoProcessor(size=side),
            num_image_tokens=4,
            vision_feature_select_strategy="full",
        )

    @staticmethod
    def qwen2_5_vl(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        config = Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 32,
                "patch_size": 14,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "initializer_range": 0.3,
            },
            text_config={
                **text,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
            },
            **_qwen_tokens(tokenizer),
        )
        return config, Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())

    @staticmethod
    def qwen3_vl(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

        config = Qwen3VLConfig(
            vision_config={**TINY_QWEN3_VISION},
            text_config={
                **text,
                "head_dim": 8,
                "rope_parameters": {**TINY_QWEN3_ROPE},
            },
            **_qwen_tokens(tokenizer),
        )
        return config, Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer, Qwen3VLVideoProcessor())

    @staticmethod
    def internvl(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import GotOcr2ImageProcessor, InternVLVideoProcessor

        size = {"height": 28, "width": 28}
        config = InternVLConfig(
            vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
            text_config=Qwen2Config(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=4,
            downsample_ratio=0.5,
        )
        return config, InternVLProcessor(
            GotOcr2ImageProcessor(size=size), tokenizer, InternVLVideoProcessor(size=size), image_seq_length=4
        )

    @staticmethod
    def smolvlm(tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import SmolVLMImageProcessor, SmolVLMVideoProcessor

        config = SmolVLMConfig(
            vision_config={**_VISION, "image_size": 28, "patch_size": 7},
            text_config=LlamaConfig(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
        edge = {"longest_edge": 28}
        images = SmolVLMImageProcessor(size=edge, max_image_size=edge)
        videos = SmolVLMVideoProcessor(size=edge, max_image_size=edge)
        return config, SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4)


def _qwen_tokens(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny random model of a family; made once per session."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that fork: PyTorch's own threads do not survive that, and the child would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve():
    """Starts loopback servers, and stops them."""
    from loopback import Server

    servers = []

    def start(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
