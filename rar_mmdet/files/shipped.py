"""The folders that travel with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]


def shipped(folder: str) -> Path:
    """Where `configs` or `demo` is: inside the package once installed, beside it in a checkout.

    The first of the two where there is neither, for whoever reads it to say what is not there.
    """
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / folder, package.parent / folder
    return beside if beside.is_dir() and not inside.is_dir() else inside
