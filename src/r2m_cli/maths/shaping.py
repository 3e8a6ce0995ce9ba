"""What is done to the reward model's scores before advantages are made."""

import torch
from torch import Tensor


def shape(scores: Tensor, finished: Tensor, clip: float | None, eos_penalty: float) -> Tensor:
    """Clip the scores to [-clip, clip], then subtract `eos_penalty` where a response does not end by itself.

    Args:
        scores: any shape, units of reward.
        finished: the same shape, true where the policy wrote the end token (in the response, never in the prompt).
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return scores - eos_penalty * (~finished).to(scores.dtype)


def fill_missing(rewards: Tensor, valid: Tensor) -> Tensor:
    """Rewards with those that are missing replaced by the mean of their group's others, or 0 if there is none.

    The group's mean does not notice them, and their own RLOO or GRPO advantage is 0; the others' RLOO advantages shrink by
    (V^2 - 1) / V^2 with V valid rewards. rewards, valid [n, K] -> [n, K].
    """
    known = torch.where(valid, rewards, 0.0)
    mean = known.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(valid, known, mean)
