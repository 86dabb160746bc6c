"""Packaging of rar_mmdet. `scripts/install.sh` makes a complete environment; see the README."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_constant(path: str, name: str):
    """The literal assigned to `name` in a module, read without importing it (its imports are not installed yet)."""
    for node in ast.parse((HERE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{name} not found in {path}")


def data_files(folder: str) -> list[str]:
    """Files of a data folder, relative to it."""
    root = HERE / folder
    files = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return [str(p) for p in files if not any(part == "__pycache__" or part.startswith(".") for part in p.parts)]


def requirements(table: str) -> list[str]:
    return [f"{name}{spec}" for name, spec in read_constant("rar_mmdet/_host.py", table).items()]


optional = read_constant("rar_mmdet/_host.py", "OPTIONAL")
docs = ["sphinx>=9,<10", "myst-parser>=5,<6", "furo"]  # `make docs`
setup(
    name="rar_mmdet",
    version=read_constant("rar_mmdet/__init__.py", "__version__"),
    description="RAR: retrieving and ranking augmented recognition of large vocabularies for MMDetection",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=read_constant("rar_mmdet/_host.py", "PYTHON"),
    install_requires=requirements("CORE"),  # wheels only: no compiler
    extras_require={
        # For environments that have mmcv, or a wheel of it: from its source pip builds it without torch and therefore
        # without its ops. scripts/install.sh builds it rightly.
        "mmdet": requirements("HOST"),
        "faiss": [f"faiss-cpu{optional['faiss-cpu']}"],
        "train": [f"{name}{optional[name]}" for name in ("peft", "accelerate")],
        "web": [f"{name}{optional[name]}" for name in ("starlette", "uvicorn", "python-multipart")],
        "supervision": [f"supervision{optional['supervision']}"],  # for Recognition.to_supervision()
        # In an environment of its own: its pins of torch and transformers exclude the host.
        "vllm": ["vllm>=0.20"],
        "docs": docs,
        "dev": [
            *requirements("OPTIONAL"),
            *docs,
            *("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "num2words", "scikit-image", "faster-coco-eval"),
        ],
    },
    entry_points={"console_scripts": ["rar-mmdet = rar_mmdet.cli:main"]},
    # configs, demo and tools travel as data under the package, with the same relative layout as in the checkout.
    packages=[
        *find_packages(include=["rar_mmdet", "rar_mmdet.*"]),
        "rar_mmdet.configs",
        "rar_mmdet.demo",
        "rar_mmdet.tools",
    ],
    package_dir={
        "rar_mmdet": "rar_mmdet",
        "rar_mmdet.configs": "configs",
        "rar_mmdet.demo": "demo",
        "rar_mmdet.tools": "tools",
    },
    package_data={
        "rar_mmdet": ["**/*.json", "**/*.jinja", "**/*.txt"],
        "rar_mmdet.configs": data_files("configs"),
        "rar_mmdet.demo": data_files("demo"),
        "rar_mmdet.tools": data_files("tools"),
    },
)
