"""The golden set of FG-CLIP 2, and a folder in the published layout around its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

GOLDEN = Path(__file__).parents[1] / "data" / "fgclip2_a"
WORDS = ["a", "photo", "of", "the", "red", "blue", "star", "cup", "bow", "drink", "square", "circle", "."]


def write_tokenizer(folder: Path) -> None:
    """Words, with the special ids of Gemma's tokenizer as SigLIP 2 uses it."""
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
    for word in WORDS:
        vocab[word] = len(vocab)
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<bos>", "unk_token": "<unk>"}))


def write_folder(folder: Path) -> Path:
    """Config, weights and tokenizer, as a published folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, folder / name)
    write_tokenizer(folder)
    return folder
