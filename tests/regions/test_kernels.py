"""The compiled loops against their definitions."""

import importlib.util
import logging

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rar_mmdet.regions import cpu, device
from rar_mmdet.regions.kernels import axis_taps, compiled, resample_columns, sum_rows
from rar_mmdet.regions.windows import halving_taps


def dense(first, count, weight, length):
    """(n, length) matrix of the same sums."""
    matrix = np.zeros((len(first), length))
    for row, (low, num, values) in enumerate(zip(first, count, weight, strict=True)):
        matrix[row, low : low + num] = values[:num]
    return matrix


def keys(x):
    """Keys' cubic convolution with a = -1/2 (Keys 1981, equation 15)."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


@settings(max_examples=50, deadline=None)
@given(step=st.floats(0.05, 6), start=st.floats(-1, 5), length=st.integers(30, 60))
def test_taps_are_the_stretched_cubic(step, start, length):
    centre = np.clip(start + step * (np.arange(8) + 0.5), 0, length)
    matrix = dense(*axis_taps(centre, step, length), length)
    stretch = max(step, 1)
    # PIL's rule for which pixels count; where it cuts, the kernel is all but zero.
    first, last = np.trunc(centre - 2 * stretch + 0.5), np.trunc(centre + 2 * stretch + 0.5)
    pixel = np.arange(length)
    expected = keys((pixel + 0.5 - centre[:, None]) / stretch)
    expected *= (pixel >= first[:, None]) & (pixel < last[:, None])
    np.testing.assert_allclose(matrix, expected / expected.sum(axis=1, keepdims=True), atol=2e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("num_taps", [1, 3, 4, 5, 8, 11])
def test_sums_of_rows_are_a_matrix_product(dtype, num_taps):
    rng = np.random.default_rng(num_taps)
    rows = rng.integers(0, 256, (20, 37)).astype(dtype)
    first = rng.integers(0, 20 - num_taps + 1, 9)
    count = np.full(9, num_taps)
    weight = rng.uniform(-1, 1, (9, num_taps)).astype(np.float32)
    out = np.empty((9, 37), dtype=np.float32)
    sum_rows(rows, first, count, weight, out)
    expected = dense(first, count, weight, 20) @ rows
    np.testing.assert_allclose(out, expected, atol=1e-3)
    rounded = np.empty((9, 30), dtype=np.uint8)
    resample_columns(rows, 5, 35, first, count, weight, rounded)
    assert np.abs(rounded - np.clip(expected[:, 5:35], 0, 255)).max() <= 0.501


@pytest.mark.parametrize("length", [1, 2, 5, 6, 31])
def test_halving_repeats_the_ends(length):
    matrix = dense(*halving_taps(length), length)
    assert matrix.shape == ((length + 1) // 2, length)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("hw", [(40, 60), (41, 33), (7, 1)])
def test_both_backends_halve_alike(hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)
    by_cpu = cpu.CpuBackend(image).transposed_level(2)
    by_torch = device.TorchBackend(torch.from_numpy(image).permute(2, 0, 1), 1).level(2)
    np.testing.assert_allclose(by_cpu, by_torch.permute(2, 1, 0).reshape(len(by_cpu), -1).numpy(), atol=1e-3)


def test_works_where_machine_code_cannot_be_kept():
    scope = {}
    exec("def twice(x):\n    return 2 * x\n", scope)  # no file: numba finds no folder for it
    assert compiled(scope["twice"])(21) == 42


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_damaged_machine_code_is_made_anew(tmp_path, monkeypatch, caplog, suffix):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    numba.config.reload_config()
    source = tmp_path / "thrice.py"
    source.write_text("def thrice(x):\n    return 3 * x\n")

    def load():
        spec = importlib.util.spec_from_file_location("thrice", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return compiled(module.thrice)

    assert load()(7) == 21
    files = list((tmp_path / "kept").rglob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert load()(7) == 21
    assert "machine code cannot be kept in" in caplog.text
    monkeypatch.undo()
    numba.config.reload_config()
