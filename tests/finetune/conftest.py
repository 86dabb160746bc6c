"""Tiny random models (those of the rankers' tests), photos that differ, and questions about them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("cat", "dog", "red car", "salt shaker", "hot dog")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a family's tiny random model, made once."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parents[1] / "rankers" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {}

    def get(family, seed=0):
        if (family, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{seed}")
            made[family, seed] = module.save_tiny_model(family, folder, seed)
        return made[family, seed]

    return get


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """60 questions about 30 photos of five greys, one for each name, in random orders."""
    folder, rng = tmp_path_factory.mktemp("questions"), np.random.default_rng(0)
    lines = []
    for number in range(30):
        label = number % 5
        grey = np.full((30, 40, 3), 40 * label + 20) + rng.integers(0, 10, (30, 40, 3))
        photo = folder / f"{number}.png"
        Image.fromarray(grey.astype(np.uint8)).save(photo)
        for _ in range(2):
            order = rng.permutation(5).tolist()
            truth = order.index(label)
            target = [truth, *(place for place in range(5) if place != truth)]
            lines.append({"photo": str(photo), "names": [NAMES[i] for i in order], "truth": truth, "target": target})
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file
