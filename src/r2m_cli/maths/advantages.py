"""Advantages from rewards. n prompts with K responses each, B = n K responses of at most R tokens."""

import torch
from torch import Tensor

EPSILON = 1e-6


def rloo(rewards: Tensor) -> Tensor:
    """Leave-one-out baseline (arXiv 2601.22664, eq. 1): A_ij = r_ij - mean of the other K-1 rewards. [n, K] -> [n, K].

    Raises ValueError for K < 2: there is no other reward.
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
    # With equal rewards, only the mean's rounding error remains; the division would turn it into large advantages.
    resolution = 8 * torch.finfo(rewards.dtype).eps * rewards.abs().amax(dim=1, keepdim=True)
    return torch.where(std <= resolution, 0.0, centred / (std + EPSILON))


def remax(rewards: Tensor, greedy: Tensor) -> Tensor:
    """Reward minus that of the prompt's greedy response (Li et al. 2023, ReMax eq. 5). [n, K], [n] -> [n, K]."""
    return rewards - greedy[:, None]


def token_rewards(scores: Tensor, mask: Tensor, kl: Tensor | None, beta: float) -> Tensor:
    """The reward of every token: the response's score at its last token, minus beta KL at each (Ziegler et al. 2019).

    Args:
        scores: [B].
        mask: [B, R], true on the response's tokens, which come first.
        kl: [B, R] estimates in nats; None omits the KL.

    Returns:
        [B, R], 0 on padding.
    """  # fmt: skip
    rewards = torch.zeros_like(mask, dtype=scores.dtype)
    if kl is not None:
        rewards = torch.where(mask, -beta * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None])


def returns_to_go(rewards: Tensor) -> Tensor:
    """Sum of this token's reward and all later ones: REINFORCE++'s advantage before whitening (Hu 2025). [B, R] -> [B, R]."""
    return rewards.flip(1).cumsum(1).flip(1)


def normalise(values: Tensor, sums: Tensor, floor: float, centre: bool) -> Tensor:
    """Divide by the standard deviation of the *global* batch, so that the update does not depend on the reward's unit.

    Args:
        values: any shape, this rank's.
        sums: [3], (count, sum, sum of squares) of the values over all ranks, from `moments`.
        floor: the smallest standard deviation to divide by, so that a batch of nearly equal values does not explode.
        centre: subtract the global mean first (whitening).
    """
    count, total, squares = sums
    mean = total / count
    std = (squares / count - mean**2).clamp_min(0).sqrt().clamp_min(floor)
    return ((values - mean if centre else values) / std).to(values.dtype)


def moments(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(count, sum, sum of squares) of the values where `mask` is true, [3] in float64. Summed over ranks they are those of the
    global batch, even if its tokens are spread unevenly over the ranks."""
    values = (values if mask is None else values[mask]).double()
    count = torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device)
    return torch.stack([count, values.sum(), values.square().sum()])


def _group_size(rewards: Tensor) -> int:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"a group baseline needs rewards [n, K] with K >= 2, got {tuple(rewards.shape)}")
    return rewards.shape[1]
