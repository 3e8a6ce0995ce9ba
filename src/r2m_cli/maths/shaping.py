"""Shaping of the reward model's scores before advantages are computed."""

import torch
from torch import Tensor


def shape(scores: Tensor, finished: Tensor, clip: float | None, eos_penalty: float) -> Tensor:
    """Clip the scores to [-clip, clip], then subtract `eos_penalty` from responses without an end token.

    Args:
        scores: any shape, units of reward.
        finished: the same shape, true where the policy wrote the end token (in the response, never in the prompt).
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return scores - eos_penalty * (~finished).to(scores.dtype)


def fill_missing(rewards: Tensor, valid: Tensor) -> Tensor:
    """Replace missing rewards by the mean of the others in their group, or by 0 if there are none.

    This leaves the group's mean unchanged, and their own RLOO or GRPO advantage is 0. The others' RLOO advantages shrink by
    the factor (V^2 - 1) / V^2 with V valid rewards. rewards, valid [n, K] -> [n, K].
    """
    known = torch.where(valid, rewards, 0.0)
    mean = known.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(valid, known, mean)
