"""Generalised advantage estimation (Schulman et al. 2016, eqs. 11 and 16)."""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t; the value after the last token is 0.

    Args:
        rewards, values: [B, R]; V_t is the critic's estimate before token t is generated.
        mask: [B, R], true on the response's tokens, which come first.

    Returns:
        advantages [B, R], and the returns A + V, the critic's targets [B, R]; both 0 on padding.
    """
    values = torch.where(mask, values, 0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = torch.where(mask, rewards + gamma * following - values, 0.0)
    advantage = torch.zeros_like(delta[:, 0])
    columns = []
    for t in reversed(range(delta.shape[1])):
        advantage = delta[:, t] + gamma * lam * advantage
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values
