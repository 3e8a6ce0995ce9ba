"""Losses of the reward model: Bradley-Terry and Group Reward Entropy (arXiv 2601.22664, eqs. 5 to 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, centring: float = 0.0) -> Tensor:
    """-log sigmoid(r_w - r_l) + centring * (r_w + r_l)^2, one loss per pair. Any equal shapes.

    Without centring this is eq. 5.

    Args:
        centring: weight of the squared sum, which keeps the rewards around 0; the difference alone lets them drift
            (Eisenstein et al. 2023, "Helping or Herding?"; TRL's `center_rewards_coefficient`).
    """
    loss = -F.logsigmoid(chosen - rejected)
    if centring:
        loss = loss + centring * (chosen + rejected).square()
    return loss


@dataclass(frozen=True)
class Grebt:
    """Per-group terms, each [n]."""

    total: Tensor  # (1 - alpha) * bt_weight * bt + alpha * gre_weight * gre, with gradient
    bt: Tensor  # detached
    gre: Tensor  # detached; the paper's degree of group degeneration, at most log K
    margin: Tensor  # r_w - r_l, detached


def grebt(
    rewards: Tensor,
    alpha: float,
    pick: Tensor | None = None,
    preference: Tensor | None = None,
    bt_weight: Tensor | float = 1.0,
    gre_weight: Tensor | float = 1.0,
) -> Grebt:
    """Group Reward Entropy Bradley-Terry, eq. 7: winner and loser of each group, and the entropy of the group.

    A group with equal rewards carries no information: its gradient is exactly 0 (never NaN), its BT is log 2 and its
    entropy log K.

    Args:
        rewards: [n, K], with gradient.
        alpha: weight of the entropy term, 0 to 1.
        pick: [n, K] rewards by which the best and the worst are picked; None: `rewards` themselves.
        preference: [n] a judge's probability that the best of the picked pair is really the better one (0.5 is a tie).
            The Bradley-Terry term becomes the cross-entropy with it. None: the best is taken to be better.
        bt_weight: [n] factor on each group's Bradley-Terry term, 0 if the judge was not asked.
        gre_weight: [n] factor on each group's entropy term, 0 if the group's own ranking must not be trusted.
    """
    pick = rewards.detach() if pick is None else pick
    winner = rewards.gather(1, pick.argmax(dim=1, keepdim=True)).squeeze(1)
    loser = rewards.gather(1, pick.argmin(dim=1, keepdim=True)).squeeze(1)

    centred = rewards - rewards.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)  # population
    # The variance of equal rewards is not always exactly 0 but may be a rounding error of the float's resolution.
    resolution = 8 * torch.finfo(rewards.dtype).eps * rewards.detach().abs().amax(dim=1, keepdim=True)
    equal = variance.detach() <= resolution.square()  # [n, 1]
    std = torch.where(equal, 1.0, variance).sqrt()
    z = torch.where(equal, 0.0, centred / std)
    log_p = F.log_softmax(z, dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)

    margin = torch.where(equal.squeeze(1), 0.0, winner - loser)
    bt = -F.logsigmoid(margin)
    if preference is not None:
        bt = -preference * F.logsigmoid(margin) - (1 - preference) * F.logsigmoid(-margin)
    return Grebt(
        total=(1 - alpha) * bt_weight * bt + alpha * gre_weight * entropy,
        bt=bt.detach(),
        gre=entropy.detach(),
        margin=margin.detach(),
    )
