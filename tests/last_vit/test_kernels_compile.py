"""LaSt pooling's Triton kernels compiled for an H100 or H200, on any machine: Triton brings the assembler along.

The launching code of kernels/cuda.py runs as it is, on tensors of the CPU, but every launch ends after compiling.
"""

import os
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton", reason="torch brings no Triton on this platform")
from last_vit.kernels import cuda  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in place of compiling"
)
SHARED_BYTES = 227 * 1024  # of one block on compute capability 9.0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Kernels compiled so far, by name."""
    kernels = {}
    gpu = SimpleNamespace(
        get_current_device=lambda: "none",  # a device of its own in Triton's tables of compiled kernels
        get_current_stream=lambda device: 0,
        get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32),
    )

    def compile_only(kernel, grid):
        def launch(*args, **kwargs):
            kernels[kernel.fn.__name__] = kernel.run(*args, grid=grid, warmup=True, **kwargs)

        return launch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "__getitem__", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
    return kernels


@pytest.mark.parametrize(
    ("shape", "k", "dtype", "selecting"),
    [
        ((2, 196, 768), 1, torch.bfloat16, {"best_patch"}),
        ((2, 196, 768), 98, torch.float32, {"best_patches"}),
        ((2, 36, 384), 9, torch.float16, {"best_patches"}),
        ((1, 2048, 1537), 1, torch.float32, {"best_patch"}),  # two windows wide, rows at odd addresses
        ((1, 2048, 64), 1, torch.float16, {"best_patch"}),  # patches split among blocks
    ],
)
def test_compiles_for_hopper(compiled, monkeypatch, dtype, shape, k, selecting):
    monkeypatch.setattr(cuda, "_num_gpu_cores", lambda device: 132)
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    variant = "paper" if k == 9 else "release"
    cuda.pool(x, k, shape[2] ** 0.5, variant).sum().backward()
    cuda.select(x, k, shape[2] ** 0.5, variant)
    assert compiled.keys() == selecting | {"spread_gradient"}
    for name, kernel in compiled.items():
        assert kernel.metadata.shared <= SHARED_BYTES
        uses_tensor_cores = "wgmma" in kernel.asm["ptx"]
        assert uses_tensor_cores == (name in selecting)
        assert kernel.asm["cubin"]
