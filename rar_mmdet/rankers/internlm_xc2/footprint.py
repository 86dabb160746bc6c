"""How much memory the model takes, before it is loaded; and 4-bit loading that leaves the vision part alone."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rar_mmdet.errors import RankerLoadError
from rar_mmdet.rankers.internlm_xc2.configuration import IXC2Config

__all__ = ["Footprint", "footprint", "guard_memory", "quantize_language_model_only"]

# Quantised: only the base linears of the language model. What adapts it to images is small and stays exact.
KEPT_EXACT = ["vit", "vision_proj", "output", "Plora_A", "Plora_B"]
# Bits per quantised weight: 4, plus one fp32 scale per 64 weights; bitsandbytes, no double quantisation.
BITS_PER_WEIGHT_NF4 = 4.5
HEADROOM = 1.05  # CUDA context and allocator rounding, ours


@dataclass(frozen=True)
class Footprint:
    """Numbers of weights by what becomes of them, and bytes per cached token.

    Attributes:
        quantizable: Base linears of the decoder layers.
        exact: All others (embeddings, output, PLoRA, norms, tower, projector).
        cache_values_per_token: Keys and values of all layers.
    """

    quantizable: int
    exact: int
    cache_values_per_token: int

    @property
    def parameters(self) -> int:
        return self.quantizable + self.exact

    def weight_bytes(self, bytes_per_value: int = 2, *, four_bit: bool = False) -> int:
        """Bytes of the loaded weights at 2 (bf16, fp16) or 4 (fp32) bytes per value."""
        linear = self.quantizable * BITS_PER_WEIGHT_NF4 / 8 if four_bit else self.quantizable * bytes_per_value
        return int(linear + self.exact * bytes_per_value)

    def cache_bytes(self, tokens: int, batch: int, bytes_per_value: int = 2) -> int:
        """Bytes of the key-value cache of `batch` prompts of `tokens` tokens."""
        return self.cache_values_per_token * tokens * batch * bytes_per_value


def footprint(config: IXC2Config) -> Footprint:
    """Count by arithmetic; a test holds it equal to the built model's parameters."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv_width = config.num_key_value_heads * config.head_dim
    linears = [(hidden, hidden + 2 * kv_width), (hidden, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    base = sum(a * b for a, b in linears)
    plora = sum(config.plora_rank * (a + b) for a, b in linears)
    biases = 2 * (hidden + kv_width) if config.bias else 0
    vision = config.vision_config
    width, ffn = vision.hidden_size, vision.intermediate_size
    encoder_layer = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    embeddings = width * (1 + vision.num_channels * config.patch_size**2 + config.num_image_tokens + 1)
    tower = vision.num_hidden_layers * encoder_layer + embeddings + 4 * width
    projector = (width + 1) * hidden + (hidden + 1) * hidden
    vocabulary = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    exact = config.num_hidden_layers * (plora + biases + 2 * hidden) + hidden + vocabulary + tower + projector
    return Footprint(
        quantizable=config.num_hidden_layers * base,
        exact=exact,
        cache_values_per_token=2 * config.num_hidden_layers * kv_width,
    )


def guard_memory(source: str | os.PathLike[str] | None, config: IXC2Config, options: Mapping[str, Any]) -> None:
    """Stop before loading where the weights cannot fit the one GPU they are sent to.

    `device_map='auto'` may split or offload the model and is left alone.

    Args:
        source: Folder or hub id, for the message.
        config: Of the model about to be loaded.
        options: Keyword arguments of `from_pretrained`.

    Raises:
        RankerLoadError: Saying what is needed, what is free and what would fit.
    """
    device = _single_device(options.get("device_map"))
    if device is None or device.type != "cuda":
        return
    dtype = options.get("dtype", options.get("torch_dtype"))
    dtype = config.dtype if dtype in (None, "auto") else dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    itemsize = (dtype or torch.float32).itemsize
    stored = getattr(config, "quantization_config", None) or {}  # a folder saved in 4 bit
    four_bit = bool(getattr(options.get("quantization_config"), "load_in_4bit", False) or stored.get("load_in_4bit"))
    needed = footprint(config).weight_bytes(itemsize, four_bit=four_bit)
    refuse_if_too_large(str(source), config, needed, device)


def refuse_if_too_large(source: str, config: IXC2Config, needed: int, device: torch.device) -> None:
    """Raise RankerLoadError if `needed` bytes of weights do not fit the free memory of a CUDA device."""
    free = free_bytes(device)
    if needed * HEADROOM <= free:
        return
    count = footprint(config)
    ways = []
    for name, size in (
        ("bf16 (dtype='bfloat16')", count.weight_bytes(2)),
        ("4 bit (BitsAndBytesConfig(load_in_4bit=True) as quantization_config)", count.weight_bytes(2, four_bit=True)),
    ):
        if size < needed:
            ways.append(f"{name} takes {_gib(size)}{'' if size * HEADROOM <= free else ' (still too much)'}")
    ways.append("a server on another machine: configs/rar_lvis_server.py")
    ways.append("a smaller model: configs/rar_lvis_qwen.py with Qwen2.5-VL-3B or Qwen3-VL-2B")
    raise RankerLoadError(
        f"{source}: its weights take {_gib(needed)} and {device} has {_gib(free)} free. What fits instead: "
        + "; ".join(ways)
        + "."
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device in bytes."""
    return torch.cuda.mem_get_info(device)[0]


def quantize_language_model_only(quantization_config: Any) -> Any:
    """The same bitsandbytes settings, with the modules of KEPT_EXACT left alone unless the user chose otherwise."""
    if getattr(quantization_config, "llm_int8_skip_modules", ()) is not None:
        return quantization_config  # another quantiser, or the user's own choice
    quantization_config = copy.deepcopy(quantization_config)
    quantization_config.llm_int8_skip_modules = list(KEPT_EXACT)
    return quantization_config


def _single_device(device_map: Any) -> torch.device | None:
    """The one device a device map sends everything to, if it does."""
    if isinstance(device_map, dict):
        device_map = device_map[""] if set(device_map) == {""} else None
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        return torch.device("cuda", device_map)
    if device_map is None or device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    return torch.device(device_map)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
