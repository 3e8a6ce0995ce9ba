"""The models that take part in a step: engines for the trained ones, plain modules for the frozen ones."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from r2m_cli.config.schema import RewardConfig
from r2m_cli.conversation import Prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import Engine
from r2m_cli.models.reward_function import function_of
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.models.samplers import Sampler, native

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
    sampler: Sampler = native  # what writes the policy's responses

    @property
    def feedback_source(self) -> str:
        """Whose features the adapter attends to: policy, reference or reward; policy where there is no adapter."""
        reward = self.reward
        return reward.source if reward.has_adapter else "policy"


def function_alone(config: RewardConfig, chat: ChatFormat) -> RewardModel:
    """reward.function in place of a reward model. It reads complete texts, so no limit on tokens applies.

    Args:
        chat: the policy's format; a function needs no tokens.
    """
    return RewardModel(None, None, None, chat, max_tokens=sys.maxsize, kind="none", function=function_of(config))
