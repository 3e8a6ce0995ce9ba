"""Between annotation and update: shape the rewards and compute advantages (arXiv 2601.22664, eq. 1 and the baselines)."""

from pkgutil import resolve_name

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Trainable
from r2m_cli.config.registry import ESTIMATORS
from r2m_cli.config.schema import PpoConfig
from r2m_cli.distributed import comm
from r2m_cli.maths import advantages as maths
from r2m_cli.maths import kl
from r2m_cli.maths.masking import masked_sum
from r2m_cli.maths.shaping import fill_missing, shape

STD_FLOOR = 1e-2  # smallest standard deviation that rewards and advantages are divided by, in units of reward
DISCOUNT = 1.0  # of later rewards: a response gets one reward, which must not be discounted by its length


def advantages(annotated: Annotated, config: PpoConfig, greedy: Annotated | None = None) -> Trainable:
    """The batch with the advantages of `ppo.algorithm` (see `Estimator`). Collective if it whitens or scales.

    Args:
        greedy: one greedy response to each prompt, for estimators that compare with it.
    """
    estimator = ESTIMATORS[config.algorithm]
    estimate = resolve_name(estimator.function)
    scores = shaped(annotated, config)
    whitening = maths.moments(scores, annotated.valid) if config.whiten_rewards else None
    scores = _normalised(scores, whitening, STD_FLOOR, centre=True)
    penalty = _token_kl(annotated, config)
    returns = None
    if estimator.per_token:
        rewards = maths.token_rewards(scores.flatten(), annotated.mask, penalty, config.beta)
        if estimator.critic:
            assert annotated.values is not None
            c = config.critic
            values, returns = estimate(rewards, annotated.values, annotated.mask, DISCOUNT, c.gae_lambda)
        else:
            values = estimate(rewards)
        mask = annotated.mask & annotated.valid.view(-1, 1)
    else:
        if penalty is not None:
            scores = scores - config.beta * masked_sum(penalty, annotated.mask).view_as(scores)
            scores = fill_missing(scores, annotated.valid)
        if estimator.greedy:
            assert greedy is not None
            # The same shaping; a missing baseline is replaced by the mean of the prompt's sampled responses.
            baseline = _normalised(shaped(greedy, config), whitening, STD_FLOOR, centre=True)
            baseline = torch.where(greedy.valid, baseline, scores.mean(dim=1, keepdim=True))
            values = estimate(scores, baseline.squeeze(1)).flatten()
        else:
            values = estimate(scores).flatten()
        mask = annotated.valid.flatten()
    if config.normalise != "none":
        values = _normalised(values, maths.moments(values, mask), STD_FLOOR, config.normalise == "whiten")
    return Trainable(annotated, torch.where(mask, values, 0.0), returns)


def shaped(annotated: Annotated, config: PpoConfig) -> Tensor:
    """Live rewards, clipped, minus the penalty for a missing end token; missing rewards are then filled in again. [n, K]."""
    finished = torch.tensor(annotated.rollout.finished, device=annotated.rewards.device).view_as(annotated.rewards)
    return fill_missing(shape(annotated.rewards, finished, config.reward_clip, config.eos_penalty), annotated.valid)


def _normalised(values: Tensor, sums: Tensor | None, floor: float, centre: bool) -> Tensor:
    """`maths.normalise` by the moments of all ranks; without moments the values are unchanged."""
    return values if sums is None else maths.normalise(values, comm.sum_over_ranks(sums), floor, centre)


def _token_kl(annotated: Annotated, config: PpoConfig) -> Tensor | None:
    """The KL to subtract from the reward, [B, R]; None if the KL is part of the loss, or there is no reference."""
    if config.kl_in != "reward" or annotated.ref_logp is None:
        return None
    return kl.ESTIMATORS[config.kl_estimator](annotated.old_logp, annotated.ref_logp)
