"""The three operators in plain torch; all of them write into their arguments."""

import torch
from torch import Tensor


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    """Root-mean-square layer norm of the last dimension of `x`, into `out`."""
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    out.copy_((wide * scale).to(out.dtype) * weight)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    """Adds `x` to `residual`, then puts the norm of the sum into `x`."""
    residual.add_(x)
    rms_norm(x, residual, weight, epsilon)


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor | None, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
    """Rotates query and key, both `(tokens, heads * head_size)`, by their positions."""
    angles = cos_sin_cache[positions.flatten()].to(torch.float32).unsqueeze(1)
    cos, sin = angles.chunk(2, dim=-1)
    width = angles.shape[-1]
    for tensor in (query, key):
        if tensor is None:
            continue
        turned = tensor.view(positions.numel(), -1, head_size)[..., :width]
        wide = turned.to(torch.float32)
        first, second = wide.chunk(2, dim=-1) if is_neox else (wide[..., 0::2], wide[..., 1::2])
        pair = first * cos - second * sin, second * cos + first * sin
        joined = torch.cat(pair, dim=-1) if is_neox else torch.stack(pair, dim=-1).flatten(-2)
        turned.copy_(joined.to(tensor.dtype))
