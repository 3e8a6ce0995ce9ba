"""The clipped policy objective with its KL term (arXiv 2601.22664, eq. 2), one loss per sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from r2m_cli.maths import kl
from r2m_cli.maths.masking import masked_mean, masked_sum

LEVELS = ("sequence", "sequence_mean", "token")  # the units that have their own importance ratio
LARGEST = 80.0  # log-ratio; exp() overflows in fp32 a little above it


@dataclass(frozen=True)
class PolicyLoss:
    """Per-sequence terms, each [B]; the step's loss is the mean of `total` over the global batch."""

    total: Tensor  # surrogate + beta * kl - bonus * entropy, with gradient
    kl: Tensor  # the KL term before beta, detached
    ratio: Tensor  # mean ratio of the sequence, detached
    clipped: Tensor  # share of the ratios that were clipped, detached


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    mask: Tensor,
    advantages: Tensor,
    *,
    level: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    beta: float,
    estimator: str,
    entropy: Tensor | None = None,
    entropy_bonus: float = 0.0,
) -> PolicyLoss:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta KL(pi_theta || pi_ref) - bonus * entropy.

    With `level="sequence"` rho is one ratio per sequence, pi(y|x) / pi_old(y|x), and KL is summed over the
    response (the paper's form). With `level="sequence_mean"` rho is the |y|-th root of that, the exponential of the mean
    log-ratio (GSPO, arXiv 2507.18071, eq. 7), so that its size does not grow with the length. With `level="token"` every
    token has its own ratio (GRPO's form). In the last two, KL is a mean over the response's tokens, so beta weighs a KL per
    token.

    For A < 0 this objective is unbounded: a ratio of a thousand gives a loss of a thousand. `dual_clip` = c bounds the
    objective from below by c A (Ye et al. 2020, arXiv 1912.09729, eq. 5); such a sequence or token then has no gradient.

    Args:
        logp, old_logp, ref_logp: [B, R] log-probabilities of the response tokens; with `ref_logp` None the KL is omitted.
        mask: [B, R], true on response tokens.
        advantages: [B], or [B, R] with `level="token"`.
        dual_clip: c > 1 + clip_high; None: no bound.
        entropy: [B, R] of the policy, with gradient, nats; its mean over the response's tokens is rewarded.
    """
    advantage = advantages[:, None] if advantages.dim() == 1 else advantages
    log_ratio = torch.where(mask, logp - old_logp, 0.0)
    if level not in LEVELS:
        raise ValueError(f"level is one of {', '.join(LEVELS)}, got {level!r}")
    reduce = masked_sum if level == "sequence" else masked_mean
    ratio_mask = mask
    if level != "token":
        if advantages.dim() != 1:
            raise ValueError(f"one ratio per sequence takes one advantage per sequence, got {tuple(advantages.shape)}")
        log_ratio = reduce(log_ratio, mask)[:, None]  # [B, 1]
        ratio_mask = torch.ones_like(log_ratio, dtype=torch.bool)

    # If a large ratio is replaced by the clip, an infinite one would still make the gradient 0 x inf.
    bounded = (advantage >= 0) | (dual_clip is not None)
    ratio = torch.where(bounded, log_ratio.clamp(max=LARGEST), log_ratio).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    if dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    loss = -masked_mean(surrogate, ratio_mask)

    penalty = torch.zeros_like(loss)
    if ref_logp is not None:
        # First make masked positions equal: a NaN there would pass through the mask into the gradient.
        penalty = reduce(kl.ESTIMATORS[estimator](logp, torch.where(mask, ref_logp, logp.detach())), mask)
        loss = loss + beta * penalty
    if entropy is not None:
        loss = loss - entropy_bonus * masked_mean(entropy, mask)

    with torch.no_grad():
        cut = (ratio * advantage != surrogate).float()
        return PolicyLoss(
            total=loss,
            kl=penalty.detach(),
            ratio=masked_mean(ratio, ratio_mask).detach(),
            clipped=masked_mean(cut, ratio_mask),
        )
