"""Whether a call may go straight to the kernels, past torch's operators.

The first call of any operator imports all of torch's compiler, over a second; a call that nothing traces and
that needs no gradient can do without.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors that nothing traces, transforms or intercepts."""
    return (
        not torch.compiler.is_compiling()
        and all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def without_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would record nothing of a call with these."""
    return not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors)
