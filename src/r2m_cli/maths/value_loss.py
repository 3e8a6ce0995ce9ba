"""The critic's clipped squared error (Schulman et al. 2017's implementation; Huang et al. 2022, detail 9)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from r2m_cli.maths.masking import masked_mean


@dataclass(frozen=True)
class ValueLoss:
    """Per-sequence terms, each [B]."""

    total: Tensor  # with gradient
    clipped: Tensor  # share of the tokens where the clipped error is the larger one, detached


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """0.5 max((V - G)^2, (V_old + clip(V - V_old) - G)^2), a mean over the response's tokens.

    Args:
        values, old_values, returns: [B, R], in units of reward.
        mask: [B, R], true on response tokens.
        clip: how far a value may move from the old one before its gradient stops; 0: no clipping.
    """
    returns = torch.where(mask, returns, values.detach())  # a masked NaN would pass through the mask into the gradient
    error = (values - returns).square()
    if clip == 0:
        return ValueLoss(0.5 * masked_mean(error, mask), torch.zeros_like(error[:, 0]))
    moved = values - old_values
    cut = (old_values + moved.clamp(-clip, clip) - returns).square()
    beyond = (moved.abs() > clip) & (cut > error)
    return ValueLoss(
        total=0.5 * masked_mean(torch.maximum(error, cut), mask),
        clipped=masked_mean(beyond.float(), mask),
    )
