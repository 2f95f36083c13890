"""Which tensors code may take that reads their memory itself, as the faster ways of pooling do."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_plain(x: Tensor) -> bool:
    """Whether this is a tensor with memory of its own and no more, and nobody records what is done to it.

    Not: no elements, subclasses (parameters and fake tensors among them), meta tensors, what transforms of torch.func
    see, forward-mode gradients, tracing (torch.jit.trace, make_fx and every other dispatch mode).
    """
    if type(x) is not Tensor or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None:
        return False
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    try:
        return x.data_ptr() != 0
    except RuntimeError:
        return False
