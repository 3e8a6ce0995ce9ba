"""The reward model: a frozen backbone (text -> reward token embedding), the adapter on the policy's states, and the head."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from r2m_cli.config.registry import FEEDBACKS
from r2m_cli.conversation import Prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import MAX_TOKENS, Truncation
from r2m_cli.distributed.engine import Engine
from r2m_cli.models.cross_attention import CrossAttention
from r2m_cli.models.ensemble import Ensemble
from r2m_cli.models.reward_backbone import frozen_head
from r2m_cli.models.reward_function import RewardFunction
from r2m_cli.models.sequences import pad
from r2m_cli.models.states import States, feedback_states, rms


class Score(NamedTuple):
    """Rewards and the adapter's statistics, each [B]; the statistics are None without an adapter."""

    reward: Tensor
    attention_entropy: Tensor | None  # of the attention over the policy's states, mean over heads, nats
    adapter_scale: Tensor | None  # rms of A over rms of H_last


@dataclass(frozen=True)
class RewardModel:
    """A frozen backbone with its initial head and, with feedback, the trainable adapter and head."""

    backbone: nn.Module | None  # RewardBackbone; None: only `function`
    frozen_head: nn.Linear | None  # phi from before RL; None: only `function`
    feedback: Engine | None  # FeedbackHead or HeadOnly; None for feedback=none
    format: ChatFormat
    max_tokens: int
    limited_by: str = MAX_TOKENS  # as in `Truncation`
    kind: str = "r2m"  # feedback.kind: what the adapter reads
    source: str = "policy"  # feedback.source: the model whose features it reads
    ensemble: Ensemble | None = None  # further frozen models; None for a single one
    function: RewardFunction | None = None  # reward.function
    unshared: str = ""  # why the backbone reads every prompt once per response; empty if responses share it

    @property
    def has_adapter(self) -> bool:
        """Whether hidden states are read at all."""
        return self.feedback is not None and FEEDBACKS[self.kind].states is not None

    @property
    def truncations(self) -> tuple[Truncation, ...]:
        """How each member of the ensemble truncates conversations, this model first. Empty without a model."""
        if self.backbone is None:
            return ()
        own = Truncation(self.format, self.max_tokens, self.limited_by)
        return (own, *(self.ensemble.truncations if self.ensemble is not None else ()))

    def live_scores(
        self, rte: Tensor, states: States, weight: float, seeds: list[int], block: int, phase: int
    ) -> Score:
        """Live rewards [B] with the policy's states, or with those that `kind` uses instead (see `feedback_states`).

        rte [B, D_rm], weight w(t).
        """
        assert self.feedback is not None
        return self.feedback(rte, feedback_states(self.kind, states, seeds, block, phase), weight)  # type: ignore[no-any-return]

    @torch.no_grad()
    def frozen_scores(self, rte: Tensor, prompts: list[Prompt], responses: list[str], device: torch.device) -> Tensor:
        """Rewards of the initial model alone, from before RL; `rte` is the result of `embed` for the same texts. [B].

        For an ensemble, its members' combined rewards, in standard deviations of their scores on labelled responses.
        """
        if self.frozen_head is None:
            return rte.new_zeros(len(responses))
        first: Tensor = self.frozen_head(rte).squeeze(1)
        return first if self.ensemble is None else self.ensemble.reward(first, prompts, responses, device)

    def function_scores(self, prompts: list[Prompt], responses: list[str], device: torch.device) -> Tensor | None:
        """The part that reward.function adds to frozen and live rewards, [B]; None without one. Raises FunctionFailed."""
        return None if self.function is None else self.function(prompts, responses).to(device)

    def score(self, prompts: list[Prompt], responses: list[str], device: torch.device) -> Tensor:
        """Frozen rewards, reward.function included, of texts that have not been embedded yet. [B]."""
        scores = self.frozen_scores(self.embed(prompts, responses, device)[0], prompts, responses, device)
        added = self.function_scores(prompts, responses, device)
        return scores if added is None else scores + added

    @torch.no_grad()
    def embed(self, prompts: list[Prompt], responses: list[str], device: torch.device) -> tuple[Tensor, States | None]:
        """Reward token embeddings of complete conversations in the reward model's own template, [B, D_rm] fp32; and, if the
        adapter reads them, the backbone's states of all their tokens."""
        if self.backbone is None:
            return torch.zeros(len(prompts), 0, device=device), None
        rows = [self.truncations[0].ids(*text) for text in zip(prompts, responses)]
        tokens, lengths = pad(rows, self.format.pad_id)
        batch = tokens.to(device), lengths.to(device), group_size(prompts)
        if self.source != "reward":
            return self.backbone(*batch).float(), None
        rte, states = self.backbone(*batch, with_states=True)
        # A text with a non-finite RTE is detected later. Its states must not spoil the rewards of its group: 0 x NaN is NaN.
        return rte.float(), States(states.hidden.nan_to_num(), states.visible)


class FeedbackHead(nn.Module):
    """The part that R2M trains: the cross-attention and the scoring head phi.

    r = phi((1 - w) A + w H_last), arXiv 2601.22664, eq. 4; always in fp32.

    Args:
        heads, learned: as in `CrossAttention`.
    """

    def __init__(
        self,
        head: nn.Linear,
        policy_size: int,
        inner_size: int,
        seed: int,
        heads: int = 1,
        learned: bool = False,
    ):
        super().__init__()
        self.phi = frozen_head(head).requires_grad_(True)
        self.adapter = CrossAttention(head.in_features, policy_size, inner_size, seed, heads, learned)

    def forward(self, rte: Tensor, states: States, weight: float) -> Score:
        """rte [B, D_rm], the policy's states of the B sequences, weight w(t) -> Score."""
        rte = rte.float()
        feedback, attention = self.adapter(rte, states)
        reward = self.phi((1 - weight) * feedback + weight * rte).squeeze(1)
        with torch.no_grad():
            entropy = -torch.special.xlogy(attention, attention).sum(dim=2).mean(dim=1)
            scale = (rms(feedback) / rms(rte).clamp_min(1e-12)).squeeze(1)
        return Score(reward, entropy, scale)


class HeadOnly(nn.Module):
    """The scoring head alone, trained on the text (the paper's Iterative RMHead): r = phi(H_last), in fp32."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.phi = frozen_head(head).requires_grad_(True)

    def forward(self, rte: Tensor, states: States | None, weight: float) -> Score:
        """rte [B, D_rm] -> Score; the states and the weight are ignored."""
        return Score(self.phi(rte.float()).squeeze(1), None, None)


def group_size(prompts: list[Prompt]) -> int:
    """K if the prompts come in runs of K equal ones, else 1."""
    first = next((i for i, prompt in enumerate(prompts) if prompt != prompts[0]), len(prompts))
    runs = [prompts[i : i + first] for i in range(0, len(prompts), first)]
    return first if all(len(run) == first and run.count(run[0]) == first for run in runs) else 1
