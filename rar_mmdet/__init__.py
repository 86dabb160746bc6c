"""RAR: retrieving and ranking augmented recognition of large vocabularies (arXiv 2403.13805) for MMDetection.

`RegionRecognizer` is the whole method without MMDetection, `Labeller` puts words of one's own on it. The MMDetection
components register themselves when a config names one of them with its scope, as in `type="rar_mmdet.RARRoIHead"`.
Nothing happens at import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rar_mmdet.labelling import Labeller
    from rar_mmdet.recognizer import RegionRecognizer

__all__ = ["Labeller", "RegionRecognizer", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on demand: `import rar_mmdet` alone must not pull in torch.
    if name == "RegionRecognizer":
        from rar_mmdet.recognizer import RegionRecognizer

        return RegionRecognizer
    if name == "Labeller":
        from rar_mmdet.labelling import Labeller

        return Labeller
    raise AttributeError(f"module 'rar_mmdet' has no attribute {name!r}")
