"""Sums and means over the valid positions of padded sequences."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last dimension where `mask` is true; masked values have no effect even if they are not finite. [B, R] -> [B]."""
    return torch.where(mask, values, 0.0).sum(dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where `mask` is true, 0 if nothing is valid. [B, R] -> [B]."""
    return masked_sum(values, mask) / mask.sum(dim=-1).clamp_min(1)


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """True at the first `lengths[b]` of `width` positions. [B] -> [B, width]."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]
