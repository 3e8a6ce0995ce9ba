"""One draw from a distribution by a given uniform number."""

import torch
from torch import Tensor


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One draw per row: the first token whose cumulative probability reaches the uniform. [B, V], [B] -> [B]."""
    cumulative = logits.softmax(dim=1).cumsum(dim=1)
    target = (uniforms * cumulative[:, -1])[:, None]  # the sum is 1 up to rounding
    return torch.searchsorted(cumulative, target).squeeze(1).clamp_max(logits.shape[1] - 1)
