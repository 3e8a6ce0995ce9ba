"""The batches that the stages of a step exchange. B = n * K sequences of this rank; a group's K responses are adjacent.

Each stage takes the batch of the previous one and returns its own: Rollout -> Annotated -> Trainable.
"""

from dataclasses import dataclass

from torch import Tensor

from r2m_cli.conversation import Prompt
from r2m_cli.maths.kl import k1
from r2m_cli.maths.masking import masked_sum


@dataclass(frozen=True)
class Rollout:
    """Responses sampled from the policy."""

    prompts: list[Prompt]  # n
    group_ids: list[int]  # n, each group's number in the step's batch over all ranks
    responses: list[str]  # B, text without special tokens
    finished: list[bool]  # B, true where the policy ended the response itself
    tokens: Tensor  # [B, S] long; prompt, response, then padding
    prompt_lengths: Tensor  # [B] tokens
    response_lengths: Tensor  # [B] tokens, the end token included; at least 1
    group_size: int  # K
    seeds: list[int]  # B, for any other random draw of a response (the noise of feedback=noise)
    # B, of each response token under the sampler, tempered; None where these are the trainer's own
    sampler_logp: list[list[float]] | None = None

    @property
    def prompt_of(self) -> list[Prompt]:
        """The prompt of each of the B responses."""
        return [prompt for prompt in self.prompts for _ in range(self.group_size)]

    @property
    def group_id_of(self) -> list[int]:
        """The number of each of the B responses' group."""
        return [number for number in self.group_ids for _ in range(self.group_size)]


@dataclass(frozen=True)
class Annotated:
    """The rollout with the models' scores from before the update."""

    rollout: Rollout
    old_logp: Tensor  # [B, R] log-probabilities under the policy that sampled, tempered
    ref_logp: Tensor | None  # [B, R] under the reference; None when beta is 0
    entropy: Tensor  # [B, R] of the policy at each response token, nats
    mask: Tensor  # [B, R] true on response tokens
    rte: Tensor  # [B, D_rm] reward token embeddings, H_last, fp32
    rewards: Tensor  # [n, K] of the live reward model; a missing one is replaced by the mean of the others in its group
    frozen_rewards: Tensor  # [n, K] of the reward model as it was before RL
    valid: Tensor  # [n, K] false where a reward was not a finite number: the response is not trained on
    gold: Tensor | None  # [n, K] true rewards where the world knows them
    values: Tensor | None  # [B, R] of the critic before each response token; None without a critic
    attention_entropy: Tensor  # [B] nats; empty without an adapter
    adapter_scale: Tensor  # [B]; empty without an adapter
    cut: Tensor  # [B] true where the conversation exceeds the reward model's limit on tokens
    function_rewards: Tensor | None = None  # [n, K] the part of both rewards from reward.function; 0 where missing

    @property
    def model_rewards(self) -> Tensor:
        """`rewards` of the reward model alone, without the part from reward.function. [n, K]."""
        return self.rewards if self.function_rewards is None else self.rewards - self.function_rewards

    @property
    def model_frozen_rewards(self) -> Tensor:
        """`frozen_rewards` without the part from reward.function. [n, K]."""
        return self.frozen_rewards if self.function_rewards is None else self.frozen_rewards - self.function_rewards

    @property
    def kl(self) -> Tensor | None:
        """k1 estimate of KL(policy || reference) of each response, summed over its tokens. [B], nats; None when beta is 0."""
        return None if self.ref_logp is None else masked_sum(k1(self.old_logp, self.ref_logp), self.mask)


@dataclass(frozen=True)
class Trainable:
    """The annotated batch with its advantages."""

    annotated: Annotated
    advantages: Tensor  # [B], or [B, R] where every token has its own
    returns: Tensor | None = None  # [B, R] the critic's targets; None without a critic
