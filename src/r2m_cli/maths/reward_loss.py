"""Losses of the reward model: Bradley-Terry and Group Reward Entropy (METHOD eqs. 5 to 7)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l), eq. 5. Any equal shapes."""
    return -F.logsigmoid(chosen - rejected)


@dataclass(frozen=True)
class Grebt:
    """Per-group terms, each [n]."""

    total: Tensor  # (1 - alpha) * bt + alpha * gre, with gradient
    bt: Tensor  # detached
    gre: Tensor  # detached; the paper's degree of group degeneration, at most log K
    margin: Tensor  # r_w - r_l, detached


def grebt(rewards: Tensor, alpha: float, pick: Tensor | None = None) -> Grebt:
    """Group Reward Entropy Bradley-Terry, eq. 7: winner and loser of each group, and the entropy of the group.

    A group whose rewards are all equal says nothing: its gradient is exactly 0 (never NaN), its BT is log 2 and
    its entropy log K.

    Args:
        rewards: [n, K], with gradient.
        alpha: weight of the entropy term, 0 to 1.
        pick: [n, K] rewards by which the best and the worst are picked; `rewards` themselves if None.
    """
    pick = rewards.detach() if pick is None else pick
    winner = rewards.gather(1, pick.argmax(dim=1, keepdim=True)).squeeze(1)
    loser = rewards.gather(1, pick.argmin(dim=1, keepdim=True)).squeeze(1)

    centred = rewards - rewards.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)  # population
    # Equal rewards leave rounding residue of the size of the float's resolution, not always an exact 0.
    resolution = 8 * torch.finfo(rewards.dtype).eps * rewards.detach().abs().amax(dim=1, keepdim=True)
    equal = variance.detach() <= resolution.square()  # [n, 1]
    std = torch.where(equal, 1.0, variance).sqrt()
    z = torch.where(equal, 0.0, centred / std)
    log_p = F.log_softmax(z, dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)

    margin = torch.where(equal.squeeze(1), 0.0, winner - loser)
    bt = -F.logsigmoid(margin)
    return Grebt(
        total=(1 - alpha) * bt + alpha * entropy,
        bt=bt.detach(),
        gre=entropy.detach(),
        margin=margin.detach(),
    )
