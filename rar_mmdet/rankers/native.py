"""Models that transformers does not bring: this package's own, and those of modules that a config names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from rar_mmdet.errors import ConfigError

__all__ = ["import_modules", "register_native_models"]


def register_native_models() -> None:
    """Make this package's models known to the Auto classes of transformers. No remote code is involved."""
    importlib.import_module("rar_mmdet.rankers.internlm_xc2")


def import_modules(modules: Sequence[str | Path]) -> None:
    """Import modules that register models with the Auto classes; each once in a process.

    Args:
        modules: Python files, or names of installed modules. They are run: name only what you trust.

    Raises:
        ConfigError: there is no such module, or it cannot be imported.
    """
    for module in modules:
        try:
            if Path(module).suffix == ".py":
                _import_file(Path(module).resolve())
            else:
                importlib.import_module(str(module))
        except (ImportError, OSError, SyntaxError) as error:
            raise ConfigError(
                f"modules={str(module)!r} cannot be imported: {error}. Give a Python file, or the name of an installed "
                "module"
            ) from error


def _import_file(file: Path) -> None:
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    sys.modules[name] = importlib.util.module_from_spec(spec)  # transformers looks up the modules of its classes
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise
