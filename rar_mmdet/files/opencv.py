"""OpenCV; where it cannot be loaded, what to type.

`opencv-python` needs libraries of a desktop (libGL, libxcb), which servers and containers often lack. Its headless
build is the same code without windows, and all we need.
"""

from rar_mmdet.errors import HostError

__all__ = ["HEADLESS_LINE", "cv2"]

# The builds share their files, so all must go before one comes.
HEADLESS_LINE = (
    "pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python opencv-contrib-python-headless && "
    "pip install opencv-python-headless"
)

try:
    import cv2
except ImportError as error:
    raise HostError(
        f"OpenCV cannot be loaded: {error}. On a machine without a desktop take its headless build:\n  {HEADLESS_LINE}"
    ) from error
