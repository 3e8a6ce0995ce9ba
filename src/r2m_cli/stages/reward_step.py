"""Stage 4: train adapter and scoring head on the fresh hidden states (Algorithm 1, line "reward-model optimisation")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.config.schema import FeedbackConfig
from r2m_cli.conversation import Pair
from r2m_cli.distributed import comm
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths.reward_loss import grebt
from r2m_cli.models.actors import Actors
from r2m_cli.models.states import FRESH, States
from r2m_cli.stages.packing import Pack
from r2m_cli.stages.pair_learning import learn_from_pairs


class RewardStep:
    """One GREBT update. Its gradient is accumulated while the policy's last epoch produces the states.

    `consume` takes complete groups as they come and keeps none of their states. `update` makes the single optimiser step.
    The frozen backbone does not run again: the reward token embeddings come from the annotation.
    """

    def __init__(
        self,
        actors: Actors,
        annotated: Annotated,
        config: FeedbackConfig,
        weight: float,
        preference: Tensor | None = None,
    ):
        """`preference`: a judge's preference between each group's best and worst response by annotated reward, see `judged`."""
        self.from_groups = config.self_labels != "none" or preference is not None
        assert actors.reward.feedback is not None
        self.actors = actors
        self.engine = actors.reward.feedback
        self.annotated = annotated
        self.preference = preference
        if preference is not None:
            counts = comm.gather((len(preference), int((~preference.isnan()).sum())))
            groups, asked = (sum(column) for column in zip(*counts))
            self.judged_weight = groups / max(
                asked, 1
            )  # turns the mean over all groups into the mean over the judged ones
        self.config = config
        self.weight = weight
        self.metrics = MetricSums()

    def consume(self, pack: Pack, states: States) -> None:
        """Add the gradient of these groups, with the policy's states of them."""
        if not self.from_groups:
            return
        if self.actors.feedback_source != "policy":
            states = self._others(pack)
        group_size, groups = self.annotated.rollout.group_size, pack.groups
        annotated_rewards = self.annotated.model_rewards[groups]
        seeds = [self.annotated.rollout.seeds[i] for i in pack.rows.tolist()]
        rte = self.annotated.rte[pack.rows]
        score = self.actors.reward.live_scores(rte, states, self.weight, seeds, group_size, phase=FRESH)
        # A group with a missing reward gets equal rewards: it has no gradient but still counts in the mean.
        whole = self.annotated.valid[groups].all(dim=1, keepdim=True)
        rewards = torch.where(whole, score.reward.view(-1, group_size), 0.0)
        live, frozen = rewards.detach(), self.annotated.model_frozen_rewards[groups]
        # The judge compared the pair that the annotated rewards picked.
        pick = live if self.preference is None and self.config.pair == "recomputed" else annotated_rewards
        best, worst = pick.argmax(dim=1, keepdim=True), pick.argmin(dim=1, keepdim=True)
        agreed = (frozen.gather(1, best) > frozen.gather(1, worst)).float().squeeze(1)
        trusted = {"all": torch.ones_like(agreed), "agreed": agreed, "none": torch.zeros_like(agreed)}
        own = trusted[self.config.self_labels]
        if self.preference is None:
            loss = grebt(rewards, self.config.alpha, pick, None, own, own)
            self.metrics.add("reward_model/bt", loss.bt)
        else:
            said = self.preference[groups]
            asked = ~said.isnan()
            loss = grebt(rewards, self.config.alpha, pick, said.nan_to_num(0.5), asked * self.judged_weight, own)
            self.metrics.add("reward_model/bt", loss.bt[asked])
            self.metrics.add("reward_model/judge_agreement", said[asked & (said != 0.5)].round())
        self.engine.backward(loss.total.sum() / len(self.annotated.rewards))

        self.metrics.add("reward_model/loss", loss.total)
        self.metrics.add("reward_model/gre", loss.gre)
        self.metrics.add("reward_model/margin", loss.margin)
        self.metrics.add("reward_model/agreement", agreed)
        self.metrics.add(
            "feedback/refresh_cosine", torch.cosine_similarity(_centre(live), _centre(annotated_rewards), dim=1)
        )

    @torch.no_grad()
    def _others(self, pack: Pack) -> States:
        """The reference's or the reward model's states of these groups."""
        if self.actors.feedback_source == "reference":
            assert self.actors.reference is not None
            return self.actors.reference(pack.sequences, 1.0).states  # type: ignore[no-any-return]
        rollout, rows = self.annotated.rollout, pack.rows.tolist()
        texts = [rollout.prompt_of[i] for i in rows], [rollout.responses[i] for i in rows]
        own = self.actors.reward.embed(*texts, self.actors.device)[1]
        assert own is not None
        return own

    def replay(self, pairs: Sequence[Pair], seed: int, budget: int) -> None:
        """Add the gradient of labelled pairs, if there are any, with the updated policy's states and the groups' weight w(t)."""
        if not pairs:
            return
        loss, right = learn_from_pairs(self.actors, pairs, self.weight, seed, budget)
        self.metrics.add("reward_model/replay_loss", loss)
        self.metrics.add("reward_model/replay_accuracy", right)

    def update(self, lr: float) -> MetricSums:
        """The optimiser step, after the last group. Raises FloatingPointError if the gradient is not finite."""
        self.metrics.add("reward_model/grad_norm", self.engine.step(lr))
        return self.metrics


def _centre(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)
