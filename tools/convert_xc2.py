"""Rewrite published InternLM-XComposer2-VL shards as safetensors; `--help` tells more."""

from rar_mmdet.rankers.internlm_xc2.conversion import main

if __name__ == "__main__":
    raise SystemExit(main())
