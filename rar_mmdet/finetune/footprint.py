"""GPU memory of a LoRA training, computed from published sizes before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SEVEN_BILLION", "LanguageModel", "most_rows", "training_bytes"]

HALF, SINGLE = 2, 4  # bytes of bf16 and fp32
ADAMW = 4 * SINGLE  # weight, gradient and two moments of what learns, in fp32
FIXED = 1.0e9  # CUDA context, cuBLAS's workspace, allocator rounding (ours)


@dataclass(frozen=True)
class LanguageModel:
    """Sizes of a vision-language model, as its config and weight files have them."""

    name: str
    parameters: float  # of the whole model
    hidden: int
    inner: int  # of the feed-forward layers
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    image_tokens: int  # of one photo, as this package asks

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        kv = self.hidden * self.kv_heads // self.heads
        outer = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        return [*outer, (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all of them."""
        return self.layers * rank * sum(a + b for a, b in self.linears())


# Sizes: config.json of llava-hf/llava-1.5-7b-hf, Qwen/Qwen2.5-VL-7B-Instruct and internlm/internlm-xcomposer2-vl-7b.
SEVEN_BILLION = (
    LanguageModel("LLaVA-1.5-7B", 7.06e9, 4096, 11008, 32, 32, 32, 32064, 576),
    LanguageModel("Qwen2.5-VL-7B", 8.29e9, 3584, 18944, 28, 28, 4, 152064, 144),
    LanguageModel("InternLM-XComposer2-VL-7B", 8.65e9, 4096, 14336, 32, 32, 8, 92544, 1225),
)


def training_bytes(model: LanguageModel, *, rank: int, rows: int, text_tokens: int, answer_tokens: int) -> float:
    """Peak of one step: bf16 base, fp32 adapter with AdamW, activations computed again in the backward pass.

    Kept for each row: what goes into every layer; inside the one layer that is computed again, the inputs of its
    linears in bf16 and once more in fp32 for the adapter, and as much for their gradients; logits of the answer alone,
    in bf16, fp32, and their gradients. Attention is taken as fused (no L x L matrix).

    Args:
        model: sizes.
        rank: of the adapter.
        rows: of a batch; accumulation costs nothing.
        text_tokens: of question and answer.
        answer_tokens: of the answer.
    """
    tokens = model.image_tokens + text_tokens
    base = model.parameters * HALF + model.lora_parameters(rank) * ADAMW
    kept = model.layers * tokens * model.hidden * HALF
    inside = 2 * tokens * sum(a for a, _ in model.linears()) * (HALF + SINGLE)
    logits = answer_tokens * model.vocabulary * (HALF + 3 * SINGLE)
    return base + FIXED + rows * (kept + inside + logits)


def most_rows(model: LanguageModel, card_bytes: float, **settings: int) -> int:
    """The largest batch that fits a card; 0: none does.

    Args:
        model: sizes.
        card_bytes: memory of the card.
        **settings: of `training_bytes`, without `rows`.
    """
    empty, one = (training_bytes(model, rows=rows, **settings) for rows in (0, 1))
    return max(0, int((card_bytes - empty) // (one - empty)))
