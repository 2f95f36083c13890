"""The switch of the Triton kernels, which are off until somebody turns them on."""

from importlib.util import find_spec

import torch

from last_vit.pooling import KERNELS

_SHARED_BYTES = 200_000  # of one block: float32 with a window of 256 channels takes 192 KiB


def use_fused_pool(enabled: bool = True) -> None:
    """Pool tokens on a CUDA GPU by the Triton kernels of this folder from now on, or, with False, no more.

    They take K = 1, and up to 256 patches for larger K; for the rest, as without them, are the formulas.

    Off by default, because the kernels have run in Triton's interpreter only and nobody has measured them: compare
    `last_pool` with and without on your GPU first.
    ValueError: No Triton, or no NVIDIA GPU of compute capability 9.0 (H100) or later; the kernels count on it.
    """
    if not enabled:
        KERNELS["cuda"] = None
        return
    if find_spec("triton") is None:
        raise ValueError("the fused pool needs Triton, which torch brings along on Linux only")
    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise ValueError("the fused pool needs an NVIDIA GPU, and torch finds none")
    gpu = torch.cuda.get_device_properties()
    if gpu.major < 9 or gpu.shared_memory_per_block_optin < _SHARED_BYTES:
        raise ValueError(f"the fused pool needs an H100 or a later GPU (compute capability 9.0), found {gpu.name}")
    from last_vit.kernels import cuda

    KERNELS["cuda"] = cuda
