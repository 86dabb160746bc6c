"""InternLM2 with Partial LoRA (arXiv 2401.16420, section 3.2): every linear of every layer adapts at image tokens only.

Shape letters: B batch, T tokens of this step, H hidden size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from rar_mmdet.rankers.internlm_xc2.configuration import IXC2Config
from rar_mmdet.rankers.kv_cache import with_cache

__all__ = ["IXC2Decoder", "PLoRALinear"]


class PLoRALinear(nn.Module):
    """`W x`, plus `alpha / rank * B A x` at image positions only (arXiv 2401.16420, section 3.2).

    `base` is a plain `nn.Linear` so that quantisers recognise it; checkpoints store it without `.base`.
    """

    def __init__(self, config: IXC2Config, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(in_features, out_features, bias=bias)
        self.Plora_A = nn.Linear(in_features, config.plora_rank, bias=False)
        self.Plora_B = nn.Linear(config.plora_rank, out_features, bias=False)
        self.scale = config.plora_alpha / config.plora_rank

    def forward(self, x: Tensor, image_mask: Tensor | None) -> Tensor:
        """x (B, T, in) -> (B, T, out). image_mask (B, T, 1) in x's dtype, 1 at image tokens; None: text only."""
        out = self.base(x)
        if image_mask is None:
            return out
        # Masking the rank-sized middle costs less than gathering rows: nine in ten tokens of a prompt are image.
        return out + self.Plora_B(self.Plora_A(x) * (image_mask * self.scale))


class IXC2Attention(nn.Module):
    """Grouped-query attention; one fused projection laid out per key-value head as [its queries, key, value]."""

    def __init__(self, config: IXC2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        fused = (config.num_attention_heads + 2 * config.num_key_value_heads) * self.head_dim
        self.wqkv = PLoRALinear(config, config.hidden_size, fused, bias=config.bias)
        self.wo = PLoRALinear(config, config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        image_mask: Tensor | None,
        **attention_kwargs: Any,  # what one attention backend needs and another does not (flash: cu_seq_lens ...)
    ) -> Tensor:
        """hidden (B, T, H) -> (B, T, H); keys and values are appended to the cache if there is one."""
        batch, length, _ = hidden.shape
        fused = self.wqkv(hidden, image_mask)
        fused = fused.view(batch, length, -1, self.num_key_value_groups + 2, self.head_dim)
        query = fused[..., :-2, :].reshape(batch, length, -1, self.head_dim).transpose(1, 2)
        key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **attention_kwargs)
        return self.wo(out.reshape(batch, length, -1), image_mask)


class IXC2FeedForward(nn.Module):
    """SwiGLU; w1 is the gate, w3 the up and w2 the down projection."""

    def __init__(self, config: IXC2Config) -> None:
        super().__init__()
        self.w1 = PLoRALinear(config, config.hidden_size, config.intermediate_size)
        self.w3 = PLoRALinear(config, config.hidden_size, config.intermediate_size)
        self.w2 = PLoRALinear(config, config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, image_mask: Tensor | None) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        return self.w2(self.act(self.w1(x, image_mask)) * self.w3(x, image_mask), image_mask)


class IXC2DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer of InternLM2."""

    def __init__(self, config: IXC2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = IXC2Attention(config, layer_idx)
        self.feed_forward = IXC2FeedForward(config)
        self.attention_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)  # fp32 inside
        self.ffn_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        image_mask: Tensor | None,
        **attention_kwargs: Any,
    ) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        hidden = hidden + self.attention(
            self.attention_norm(hidden), rotary, attention_mask, past_key_values, image_mask, **attention_kwargs
        )
        return hidden + self.feed_forward(self.ffn_norm(hidden), image_mask)


class IXC2Decoder(nn.Module):
    """The language model without its output matrix (`model.*` of the checkpoint)."""

    def __init__(self, config: IXC2Config) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(IXC2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # reads the same fields

    def forward(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        image_mask: Tensor | None,
        **attention_kwargs: Any,
    ) -> Tensor:
        """embeds (B, T, H), position_ids (B or 1, T) -> normalised last hidden states (B, T, H)."""
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **with_cache(past_key_values),
        )
        rotary = self.rotary_emb(embeds, position_ids=position_ids)
        hidden = embeds
        for layer in self.layers:
            hidden = layer(hidden, rotary, causal_mask, past_key_values, image_mask, **attention_kwargs)
        return self.norm(hidden)
