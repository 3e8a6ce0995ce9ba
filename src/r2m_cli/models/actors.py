"""The models that take part in a step, each where it is trained or kept frozen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r2m_cli.batch import Prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import Engine

Gold = Callable[[Prompt, str, bool], float]  # prompt, response, finished -> true reward


@dataclass(frozen=True)
class RewardModel:
    """A frozen backbone with its initial head, and, with feedback, the adapter and head that learn."""

    backbone: nn.Module  # RewardBackbone
    frozen_head: nn.Linear  # phi as it was before RL
    feedback: Engine | None  # FeedbackHead; None for feedback=none
    format: ChatFormat
    max_tokens: int

    @torch.no_grad()
    def embed(self, prompts: list[Prompt], responses: list[str], device: torch.device) -> Tensor:
        """Reward token embeddings of whole conversations, through the reward model's own template. [B, D_rm] fp32."""
        rows = [
            self.format.cut(self.format.conversation_ids(p, r), self.max_tokens) for p, r in zip(prompts, responses)
        ]
        tokens, lengths = pad(rows, self.format.pad_id)
        mask = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
        return self.backbone(tokens.to(device), mask.to(device)).float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Actors:
    """Everything that a step needs."""

    policy: Engine  # Policy
    reference: nn.Module | None  # Policy, frozen; None when beta is 0
    reward: RewardModel
    format: ChatFormat  # the policy's
    gold: Gold | None  # where the true reward is known
    device: torch.device


def pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor, padded on the right, and their lengths. -> [B, S], [B]."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) for row in rows])
