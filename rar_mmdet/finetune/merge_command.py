"""A base model and a LoRA adapter as one plain folder, which everything that reads the base reads too.

    rar-mmdet finetune merge --model llava-hf/llava-1.5-7b-hf --adapter work_dirs/finetune/aircraft_llava/adapter \\
        --out weights/llava-aircraft

Needs the memory of the model once. Nothing has to be merged to use an adapter: `adapter=` of a TransformersRanker puts
it on, and servers load it beside the base (docs/finetune.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from rar_mmdet.errors import ConfigError, MissingAssetError, RankerLoadError
from rar_mmdet.files.checkpoints import Checkpoint
from rar_mmdet.rankers.adapters import Adapter, copy_all_but_weights
from rar_mmdet.rankers.loaded_model import Loading, read_model

__all__ = ["main", "merge_adapter"]

AS_USUAL = Loading()


def merge_adapter(
    model: str | Path, adapter: str | Path, out: Path, *, dtype: str | None = None, loading: Loading = AS_USUAL
) -> None:
    """Write the merged model.

    Args:
        model: folder or hub id of the base.
        adapter: folder of the adapter.
        out: folder to write; must not hold a model.
        dtype: of the weights written, 'float32', 'bfloat16' or 'float16'; `None`: as the base's are stored.
        loading: modules that the base needs.

    Raises:
        MissingAssetError: base or adapter are not there.
        RankerLoadError: the adapter is of another base, or one of the two is damaged.
        ConfigError: `out` has a model in it.
    """
    base, added = Checkpoint(str(model), what="ranker model", error=RankerLoadError), Adapter(adapter)
    if missing := base.missing() + added.missing():
        raise MissingAssetError("; ".join(missing))
    if (out / "config.json").exists():
        raise ConfigError(f"{out} holds a model already; give another --out")
    added.check_base(base)
    # Added in float32: in half precision small differences would be rounded away before they are stored.
    read, _ = read_model(base.folder, torch.device("cpu"), torch.float32, loading)
    merged = added.put_on(read)
    stored = getattr(torch, dtype) if dtype else _stored_dtype(base.folder)
    copy_all_but_weights(base.folder, out)
    kept = {file: file.read_bytes() for file in out.iterdir()}
    merged.to(stored).save_pretrained(out)
    for file, content in kept.items():  # the base's own words, not those of the library that saved it
        file.write_bytes(content)


def _stored_dtype(folder: Path) -> torch.dtype:
    from safetensors import safe_open

    with safe_open(str(min(folder.glob("*.safetensors"))), framework="pt") as stream:
        dtypes = {stream.get_tensor(key).dtype for key in list(stream.keys())[:8]}
    floating = sorted((d for d in dtypes if d.is_floating_point), key=lambda d: -d.itemsize)
    return floating[0] if floating else torch.float32


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of the base")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder of the merged model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as the base is stored")
    parser.add_argument("--modules", nargs="*", default=[], help="Python files that make the base known, as in configs")
    args = parser.parse_args(argv)
    merge_adapter(args.model, args.adapter, args.out, dtype=args.dtype, loading=Loading(modules=tuple(args.modules)))
    print(f"{args.out}: {args.model} with {args.adapter}")
    return 0
