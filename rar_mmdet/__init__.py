"""RAR: retrieving and ranking augmented recognition for MMDetection (arXiv 2403.13805)."""

__version__ = "0.1.0"
