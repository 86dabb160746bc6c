"""FG-CLIP 2: two towers of SigLIP 2 NaFlex and three heads more. Inference only.

Written from a description of the published model (arXiv 2510.10921; layout of `qihoo360/fg-clip2-base`), under the
published names of its tensors. Shape letters: B images, L patches of the padded grid, N texts, T tokens, D width,
K boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from rar_mmdet.encoders.fgclip2.configuration import Fgclip2Config, Fgclip2TextConfig, Fgclip2VisionConfig
from rar_mmdet.encoders.region_pooling import boxes_in_cells, pool_boxes
from rar_mmdet.errors import ConfigError, EncoderLoadError

__all__ = ["WALKS", "Fgclip2Model", "Fgclip2Output"]

WALKS = ("short", "box", "long")
# Temperatures of losses that only training uses.
TRAINING_KEYS = [r"^logit_scale_finegraind$", r"^logit_scale_hardneg$"]


@dataclass
class Fgclip2Output(ModelOutput):
    """What `Fgclip2Model.forward` gives."""

    logits_per_image: Tensor | None = None  # (B, N)
    logits_per_text: Tensor | None = None  # (N, B)
    image_embeds: Tensor | None = None  # (B, D), unit length
    text_embeds: Tensor | None = None  # (N, D), unit length


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, valid: Tensor | None) -> Tensor:
    """Multi-head attention of projected (B, T, D) tensors; keys where `valid`, (B, T) bool, is false are not seen."""
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    mask = None if valid is None else valid[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return self.out_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, valid))


class _PackedAttention(nn.Module):
    """Attention whose three projections lie in one matrix, stored as `nn.MultiheadAttention` stores them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, tokens, tokens), weights, biases, strict=True))
        return self.out_proj(_attend(q, k, v, self.heads, valid))


class _MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = _Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), valid)
        return x + self.mlp(self.layer_norm2(x))


class _Layers(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, valid)
        return x


class _PoolingHead(nn.Module):
    """Attention by queries over the tokens, then r + MLP(norm(r)); r has no part of the query itself."""

    def __init__(self, config: Fgclip2VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))  # in the file of the dense head too, unused
        self.attention = _PackedAttention(config.hidden_size, config.num_attention_heads)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _MLP(config)

    def pool(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """(B, D): the learned probe asks all tokens."""
        return self.per_query(self.probe.expand(len(tokens), -1, -1), tokens, valid)[:, 0]

    def per_query(self, query: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """(B, Q, D)."""
        pooled = self.attention(query, tokens, valid)
        return pooled + self.mlp(self.layernorm(pooled))


class _VisionEmbeddings(nn.Module):
    def __init__(self, config: Fgclip2VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        tables: dict[tuple[int, int], Tensor] = {}
        for row, shape in enumerate(spatial_shapes):
            if shape not in tables:
                tables[shape] = self._table(shape, x.shape[1]).to(x.dtype)
            x[row] += tables[shape]
        return x

    def _table(self, shape: tuple[int, int], length: int) -> Tensor:
        """(L, D) positions of a grid of patches; those of padding are the first patch's, as in the original."""
        weight = self.position_embedding.weight.float()  # half precision cannot be resized on every device
        side = round(len(weight) ** 0.5)
        grid = weight.T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, shape, mode="bilinear", align_corners=False, antialias=True)
        table = grid[0].flatten(1).T
        return torch.cat([table, table[:1].expand(length - len(table), -1)])


class _VisionTower(nn.Module):
    def __init__(self, config: Fgclip2VisionConfig) -> None:
        super().__init__()
        self.embeddings = _VisionEmbeddings(config)
        self.encoder = _Layers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = _PoolingHead(config) if config.vision_use_head else None

    def forward(self, pixel_values: Tensor, shapes: Sequence[tuple[int, int]], valid: Tensor) -> Tensor:
        """(B, L, D) tokens after the last norm."""
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values, shapes), valid))


class _TextEmbeddings(nn.Module):
    """Three position tables: one for short and box texts; two for long ones, of which each has an unread part."""

    def __init__(self, config: Fgclip2TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.keep_len = config.keep_len
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, width)
        self.position_embedding_ori = nn.Embedding(config.longtext_len, width)
        self.position_embedding_res = nn.Embedding(config.longtext_len, width)

    def forward(self, input_ids: Tensor, walk: str) -> Tensor:
        length = input_ids.shape[1]
        if walk == "long":
            keep = self.keep_len
            positions = torch.cat(
                [self.position_embedding_ori.weight[:keep], self.position_embedding_res.weight[keep:]]
            )
        else:
            positions = self.position_embedding.weight
        return self.token_embedding(input_ids) + positions[:length]


class _TextTower(nn.Module):
    def __init__(self, config: Fgclip2TextConfig) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(config)
        self.encoder = _Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size)  # of short texts

    def forward(self, input_ids: Tensor, walk: str, valid: Tensor | None) -> Tensor:
        """(N, T, D) tokens after the last norm; every token sees every other."""
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids, walk), valid))


class Fgclip2Model(PreTrainedModel):
    """FG-CLIP 2 with the argument names of the published class. Vectors are not normalised unless a line says so."""

    config_class = Fgclip2Config
    base_model_prefix = "fgclip2"
    main_input_name = "pixel_values"
    _no_split_modules = ["_Layer", "_PoolingHead"]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = TRAINING_KEYS

    def __init__(self, config: Fgclip2Config) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.text_model, self.vision_model = _TextTower(text), _VisionTower(vision)
        self.dense_feature_head = _PoolingHead(vision)
        self.boxtext_head = nn.Linear(text.hidden_size, text.projection_size)
        self.longtext_head = nn.Linear(text.hidden_size, text.projection_size)
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights, for tests and benchmarks: published folders always hold all of them."""
        super()._init_weights(module)
        if isinstance(module, _PoolingHead):
            nn.init.normal_(module.probe)
        elif isinstance(module, _PackedAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a published folder, completely or not at all. Arguments are those of transformers.

        Raises:
            EncoderLoadError: tensors are missing, unexpected or of another shape than config.json says.
        """
        want_info = kwargs.pop("output_loading_info", False)
        load: Any = super().from_pretrained  # its stubs forget what output_loading_info returns
        model, info = load(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that every one of them can be named
            **kwargs,
        )
        kinds = {"missing": "missing_keys", "unexpected": "unexpected_keys", "of another shape": "mismatched_keys"}
        problems = [
            f"{len(info[key])} {what} ({', '.join(sorted(map(str, info[key]))[:3])}, ...)"
            for what, key in kinds.items()
            if info[key]
        ]
        if problems:
            raise EncoderLoadError(
                f"{pretrained_model_name_or_path} does not hold exactly the tensors of its config.json: "
                f"{'; '.join(problems)}. Get config.json and weights of the same FG-CLIP 2 model"
            )
        return (model, info) if want_info else model

    def get_input_embeddings(self) -> nn.Module:
        """The table of the text's tokens."""
        return self.text_model.embeddings.token_embedding

    def get_image_features(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> Tensor:
        """Vectors of whole images.

        Args:
            pixel_values: (B, L, 3 P P) normalised patches, row by row; rows after the image's own are padding.
            pixel_attention_mask: (B, L), 1 where a patch is the image's own; `None`: as `spatial_shapes` say.
            spatial_shapes: (B, 2) rows and columns of each image's grid.

        Returns:
            (B, D).

        Raises:
            ConfigError: the shapes do not fit, or this checkpoint has no pooling head.
        """
        head = self.vision_model.head
        if head is None:
            raise ConfigError("this checkpoint has no pooling head (vision_use_head=false); use the dense features")
        tokens, valid, _ = self._tokens(pixel_values, pixel_attention_mask, spatial_shapes)
        return head.pool(tokens, valid)

    def get_image_dense_feature(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> Tensor:
        """(B, L, D): a vector of each patch; those after the image's own mean nothing. Arguments as above."""
        tokens, valid, _ = self._tokens(pixel_values, pixel_attention_mask, spatial_shapes)
        return self.dense_feature_head.per_query(tokens, tokens, valid)

    def get_image_region_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        image_sizes: Any = None,
        region_infos: Sequence[Any] | None = None,
    ) -> list[Tensor]:
        """Vectors of boxes, by one forward pass for all boxes of an image.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: as `get_image_features`.
            image_sizes: (B, 2) height and width of the photos the boxes are given in.
            region_infos: for each image its boxes, (K, 4) xyxy in pixels of the photo.

        Returns:
            For each image (K, D) float32. A box of no area gives zeros, which cannot be normalised.
        """
        if spatial_shapes is None or image_sizes is None or region_infos is None:
            raise ConfigError("get_image_region_features needs spatial_shapes, image_sizes and region_infos")
        dense = self.get_image_dense_feature(pixel_values, pixel_attention_mask, spatial_shapes)
        found = []
        for tokens, shape, size, boxes in zip(
            dense, torch.as_tensor(spatial_shapes).tolist(), torch.as_tensor(image_sizes).tolist(), region_infos,
            strict=True,
        ):  # fmt: skip
            rows, columns = shape
            grid = tokens[: rows * columns].T.reshape(-1, rows, columns)
            found.append(pool_boxes(grid, boxes_in_cells(boxes, (size[0], size[1]), (rows, columns))))
        return found

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, walk_type: str = "short"
    ) -> Tensor:
        """Vectors of texts, each read at its last position.

        Args:
            input_ids: (N, T) padded on the right to the length the model was trained with, because padding is part
                of the input: `max_position_embeddings` for short and box, exactly `longtext_len` for long.
            attention_mask: (N, T), 1 where a token is seen. The model was trained without: leave it out.
            walk_type: 'short', 'box' (for regions) or 'long', in any case.

        Returns:
            (N, D).

        Raises:
            ConfigError: another walk, or texts of a length that it cannot take.
        """
        walk = str(walk_type).lower()
        if walk not in WALKS:
            raise ConfigError(f"walk_type must be one of {', '.join(WALKS)}, got {walk_type!r}")
        text, length = self.config.text_config, input_ids.shape[-1]
        if length != text.longtext_len if walk == "long" else length > text.max_position_embeddings:
            need = f"exactly {text.longtext_len}" if walk == "long" else f"at most {text.max_position_embeddings}"
            raise ConfigError(f"walk_type={walk!r} takes {need} tokens, got {length}; pad or cut the texts to that")
        tokens = self.text_model(input_ids, walk, None if attention_mask is None else attention_mask.bool())
        heads = {"short": self.text_model.head, "box": self.boxtext_head, "long": self.longtext_head}
        return heads[walk](tokens[:, -1])

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        walk_type: str = "short",
    ) -> Fgclip2Output:
        """Logits of every image with every text: cosine x exp(`logit_scale`) + `logit_bias`, for all three walks."""
        image = F.normalize(self.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes), dim=-1)
        text = F.normalize(self.get_text_features(input_ids, attention_mask, walk_type), dim=-1)
        logits = image @ text.T * self.logit_scale.exp() + self.logit_bias
        return Fgclip2Output(logits_per_image=logits, logits_per_text=logits.T, image_embeds=image, text_embeds=text)

    def _tokens(
        self, pixel_values: Tensor, mask: Tensor | None, spatial_shapes: Any
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """(B, L, D) tokens, (B, L) which of them are the image's own, and the grids."""
        if spatial_shapes is None:
            raise ConfigError("spatial_shapes is needed: (B, 2) rows and columns of each image's patches")
        shapes = [(int(rows), int(columns)) for rows, columns in torch.as_tensor(spatial_shapes).tolist()]
        length = pixel_values.shape[1]
        counts = torch.tensor([rows * columns for rows, columns in shapes], device=pixel_values.device)
        if len(shapes) != len(pixel_values) or any(r < 1 or c < 1 or r * c > length for r, c in shapes):
            raise ConfigError(
                f"spatial_shapes {shapes} do not fit {len(pixel_values)} images of {length} patches: one grid for each "
                "image, of at most that many patches"
            )
        own = torch.arange(length, device=pixel_values.device)[None] < counts[:, None]
        valid = own if mask is None else mask.bool()
        return self.vision_model(pixel_values, shapes, valid), valid, shapes
