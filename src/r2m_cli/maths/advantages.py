"""Advantages from the rewards of a group: K responses to one prompt. All functions take and give [n, K]."""

import torch
from torch import Tensor

EPSILON = 1e-6


def rloo(rewards: Tensor) -> Tensor:
    """Leave-one-out baseline (METHOD eq. 1): A_ij = r_ij - mean of the other K-1 rewards. [n, K] -> [n, K].

    Raises ValueError for K < 2, where there is no other reward.
    """
    group_size = _group_size(rewards)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (group_size - 1)
    return rewards - others


def grpo(rewards: Tensor) -> Tensor:
    """Standardise within the group (Shao et al. 2024): (r - mean) / std, sample std. [n, K] -> [n, K].

    A group of equal rewards has advantage 0. Raises ValueError for K < 2.
    """
    _group_size(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True)
    # Equal rewards leave the mean's rounding behind, which the division would blow up to whole advantages.
    resolution = 8 * torch.finfo(rewards.dtype).eps * rewards.abs().amax(dim=1, keepdim=True)
    return torch.where(std <= resolution, 0.0, centred / (std + EPSILON))


ESTIMATORS = {"rloo": rloo, "grpo": grpo}


def scale_by_std(advantages: Tensor, sums: Tensor, floor: float) -> Tensor:
    """Divide by the standard deviation of the *global* batch, so that the reward's unit drops out of the step.

    Args:
        advantages: [n, K], this rank's.
        sums: [3], (count, sum, sum of squares) of the advantages over all ranks.
        floor: the smallest standard deviation to divide by: a batch of near-equal rewards must not explode.
    """
    count, total, squares = sums
    variance = squares / count - (total / count) ** 2
    return advantages / variance.clamp_min(0).sqrt().clamp_min(floor)


def moments(values: Tensor) -> Tensor:
    """(count, sum, sum of squares) of a tensor, [3] in float64: what `scale_by_std` needs, summed over ranks."""
    values = values.double()
    count = torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device)
    return torch.stack([count, values.sum(), values.square().sum()])


def _group_size(rewards: Tensor) -> int:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"a group baseline needs rewards [n, K] with K >= 2, got {tuple(rewards.shape)}")
    return rewards.shape[1]
