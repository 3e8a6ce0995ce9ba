"""The models that take part in a step, each where it is trained or kept frozen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from r2m_cli.conversation import Prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import Engine
from r2m_cli.models.reward_model import RewardModel

Gold = Callable[[Prompt, str, bool], float]  # prompt, response, finished -> true reward


@dataclass(frozen=True)
class Actors:
    """Everything that a step needs."""

    policy: Engine  # Policy
    reference: nn.Module | None  # Policy, frozen; None when beta is 0
    reward: RewardModel
    format: ChatFormat  # the policy's
    gold: Gold | None  # where the true reward is known
    device: torch.device
    critic: Engine | None = None  # Critic; only with ppo.algorithm=ppo
    lora: Any = None  # peft's wrapper of the policy when only its adapters are trained

    @property
    def feedback_source(self) -> str:
        """Whose features the adapter attends to: policy, reference or reward; policy where there is no adapter."""
        reward = self.reward
        return reward.source if reward.has_adapter else "policy"
