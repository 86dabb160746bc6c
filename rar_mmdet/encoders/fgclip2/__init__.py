"""FG-CLIP 2 (arXiv 2510.10921), native: no remote code, published folders load as they are.

Importing this package makes config and model known to the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from rar_mmdet.encoders.fgclip2.configuration import Fgclip2Config, Fgclip2TextConfig, Fgclip2VisionConfig
from rar_mmdet.encoders.fgclip2.modeling import Fgclip2Model
from rar_mmdet.encoders.fgclip2.processing import grid_of, patch_budget, prepare_images, tokenize

AutoConfig.register(Fgclip2Config.model_type, Fgclip2Config, exist_ok=True)
AutoModel.register(Fgclip2Config, Fgclip2Model, exist_ok=True)
# What the published auto_map and the model card name, although the model writes no text.
AutoModelForCausalLM.register(Fgclip2Config, Fgclip2Model, exist_ok=True)

__all__ = [
    "Fgclip2Config",
    "Fgclip2Model",
    "Fgclip2TextConfig",
    "Fgclip2VisionConfig",
    "grid_of",
    "patch_budget",
    "prepare_images",
    "tokenize",
]
