"""InternLM-XComposer2-VL (arXiv 2401.16420), native: no remote code, published checkpoint folders load as they are.

Importing this package makes config, model and processor known to the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from rar_mmdet.rankers.internlm_xc2.configuration import IXC2Config
from rar_mmdet.rankers.internlm_xc2.modeling import IXC2ForConditionalGeneration
from rar_mmdet.rankers.internlm_xc2.processing import IXC2ImageProcessor, IXC2Processor

AutoConfig.register(IXC2Config.model_type, IXC2Config, exist_ok=True)
AutoModelForImageTextToText.register(IXC2Config, IXC2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(IXC2Config, IXC2Processor, exist_ok=True)

__all__ = ["IXC2Config", "IXC2ForConditionalGeneration", "IXC2ImageProcessor", "IXC2Processor"]
