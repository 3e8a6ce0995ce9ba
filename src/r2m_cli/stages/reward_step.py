"""Stage 4: adapter and scoring head learn on the fresh hidden states (Algorithm 1, line "reward-model optimisation")."""

from time import perf_counter

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths.reward_loss import grebt
from r2m_cli.models.actors import Actors
from r2m_cli.schema import FeedbackConfig


class RewardStep:
    """One GREBT update whose gradient is summed as the policy's last epoch produces the states.

    `consume` takes whole groups as they come; nothing is kept of their states. `update` makes the one optimiser step.
    The frozen backbone does not run: the reward token embeddings are those of the annotation.
    """

    def __init__(self, actors: Actors, annotated: Annotated, config: FeedbackConfig, weight: float):
        assert actors.reward.feedback is not None
        self.engine = actors.reward.feedback
        self.annotated = annotated
        self.config = config
        self.weight = weight
        self.metrics = MetricSums()
        self.seconds = 0.0  # spent in `consume`, that is inside the policy step

    def consume(self, part: slice, hidden: Tensor, mask: Tensor) -> None:
        """Add the gradient of these groups: hidden [B, S-1, D_p] and mask [B, S-1] of the sequences in `part`."""
        begun = perf_counter()
        group_size = self.annotated.rollout.group_size
        groups = slice(part.start // group_size, part.stop // group_size)
        annotated_rewards = self.annotated.rewards[groups]
        score = self.engine(self.annotated.rte[part], hidden, mask, self.weight)
        rewards = score.reward.view(-1, group_size)
        live = rewards.detach()
        pick = annotated_rewards if self.config.pair == "annotated" else live
        loss = grebt(rewards, self.config.alpha, pick)
        self.engine.backward(loss.total.sum() / len(self.annotated.rewards))

        frozen = self.annotated.frozen_rewards[groups]
        best, worst = pick.argmax(dim=1, keepdim=True), pick.argmin(dim=1, keepdim=True)
        self.metrics.add("reward_model/loss", loss.total)
        self.metrics.add("reward_model/bt", loss.bt)
        self.metrics.add("reward_model/gre", loss.gre)
        self.metrics.add("reward_model/margin", loss.margin)
        self.metrics.add("reward_model/agreement", (frozen.gather(1, best) > frozen.gather(1, worst)).float())
        self.metrics.add(
            "feedback/refresh_cosine", torch.cosine_similarity(_centre(live), _centre(annotated_rewards), dim=1)
        )
        self.seconds += perf_counter() - begun

    def update(self, lr: float) -> MetricSums:
        """The optimiser step, after the last group. Raises FloatingPointError if the gradient is not finite."""
        self.metrics.add("reward_model/grad_norm", self.engine.step(lr))
        return self.metrics


def _centre(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)
