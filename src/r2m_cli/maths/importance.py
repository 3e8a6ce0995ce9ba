"""Importance weights for samples that another program drew from the policy, with slightly different probabilities."""

import torch
from torch import Tensor

from r2m_cli.maths.masking import masked_sum


def log_weights(logp: Tensor, sampler_logp: Tensor, mask: Tensor, level: str) -> Tensor:
    """log(pi_old / pi_sampler), of each response token with `level="token"`, else of each whole response.

    Args:
        logp, sampler_logp: [B, R] log-probabilities of the response tokens under the trainer's policy and the sampler's.
        mask: [B, R], true on response tokens.

    Returns:
        [B, R], 0 on padding; or [B].
    """
    gap = torch.where(mask, logp - sampler_logp, 0.0)
    return gap if level == "token" else masked_sum(gap, mask)


def truncated(log_weight: Tensor, cap: float) -> Tensor:
    """min(exp(log_weight), cap): truncated importance sampling (Ionides 2008; for RL of language models Yao et al. 2025)."""
    return log_weight.exp().clamp_max(cap)
