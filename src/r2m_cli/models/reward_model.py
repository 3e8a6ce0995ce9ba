"""The reward model: a frozen backbone that gives the reward token embedding, and the head that learns."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from r2m_cli.errors import UserError
from r2m_cli.models.cross_attention import CrossAttention
from r2m_cli.models.sequences import Layout, Padded, SharedPrefix
from r2m_cli.models.sharing import why_not
from r2m_cli.models.states import Features, States, rms


class RewardBackbone(nn.Module):
    """Any sequence-classification model with one output: what its last linear layer reads is the RTE, H_last.

    The head's input is captured as the model runs, so that decoders (a head on every position) and encoders (a head on
    a pooled state) need no code of their own. Where it comes per position it is picked by length, never by the pad id:
    with pad = EOS the latter reads the wrong token. Replies to one prompt share it, as in `Policy`.
    """

    def __init__(
        self, classifier: nn.Module, attention: str = "sdpa", features: str = "states", boundary: int | None = None
    ):
        """
        Args:
            boundary: `ChatFormat.boundary`: the rows are two texts each, whose numbers the model is told if it has a use for
                them.
        """  # fmt: skip
        super().__init__()
        self.classifier = classifier
        self.boundary = boundary if getattr(classifier.config, "type_vocab_size", 0) > 1 else None
        self.features = Features(classifier, features)
        self._captured: Tensor | None = None
        find_head(classifier).register_forward_pre_hook(self._capture)
        self.unshared = why_not(classifier, self._states, attention)

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._captured = args[0]

    def _states(self, layout: Layout) -> Tensor:
        """What the head reads: [T, D_rm], or an encoder's pooled state [B, D_rm]."""
        self.classifier(**layout.inputs())
        state, self._captured = self._captured, None
        assert state is not None, "the classifier did not run its own head"
        return state.flatten(0, -2)

    def forward(
        self, tokens: Tensor, lengths: Tensor, group_size: int = 1, with_states: bool = False
    ) -> Tensor | tuple[Tensor, States]:
        """tokens [B, S] (padding on the right), lengths [B] -> RTE [B, D_rm]; if asked, also what the adapter reads.

        The `group_size` neighbours of a group are read with one copy of whatever tokens they have in common.
        """
        if self.boundary is not None:
            layout: Layout = Padded(tokens, lengths, segments(tokens, lengths, self.boundary))
        elif self.unshared:
            layout = Padded(tokens, lengths)
        else:
            layout = SharedPrefix(tokens, common_prefix(tokens, lengths, group_size), lengths, group_size)
        state = self._states(layout)
        rows = torch.arange(len(tokens), device=tokens.device)
        if len(state) == len(tokens):  # an encoder's, pooled
            if self.features.kind != "states":
                raise UserError(
                    f"feedback.features={self.features.kind}: the reward model pools its states into one, which belongs to no token; "
                    "with feedback.source=reward it needs feedback.features=states"
                )
            return (state, States(state, rows[:, None] == rows)) if with_states else state
        rte = state[layout.at(rows, lengths - 1)]
        return (rte, States(self.features(state), layout.visible(lengths))) if with_states else rte


def common_prefix(tokens: Tensor, lengths: Tensor, group_size: int) -> Tensor:
    """How many tokens the rows of each group begin with in common, less than any of them has. [B, S], [B] -> [B].

    Told by the tokens themselves: a template or tokenizer that merges the end of the prompt with a reply's beginning,
    or a conversation that is cut on the left, shares less and never the wrong tokens.
    """
    groups = tokens.view(-1, group_size, tokens.shape[1])
    same = (groups == groups[:, :1]).all(dim=1)
    common = same.long().cumprod(dim=1).sum(dim=1)
    shortest = lengths.view(-1, group_size).min(dim=1).values
    return torch.minimum(common, shortest - 1).repeat_interleave(group_size)


def segments(tokens: Tensor, lengths: Tensor, boundary: int) -> Tensor:
    """Which of its row's two texts each token belongs to, 0 or 1: token_type_ids. [B, S], [B] -> [B, S].

    A row is "[CLS] question [SEP] answer [SEP]", or its end: what has no more than one separator at or behind it is of the
    answer. Told by the tokens, so that a row that was cut on the left needs no second list.
    """
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    separators = ((tokens == boundary) & inside).long()
    behind = separators.flip(1).cumsum(dim=1).flip(1)  # at or behind each place
    return ((behind <= 1) & inside).long()


def find_head(classifier: nn.Module) -> nn.Linear:
    """The scoring head: the last linear layer with a single output.

    Raises UserError if there is none.
    """
    heads = [m for m in classifier.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not heads:
        raise UserError(
            f"reward.path: {type(classifier).__name__} has no scoring head with one output; a reward model is a "
            "sequence-classification model with num_labels=1"
        )
    return heads[-1]


class Score(NamedTuple):
    """Rewards and what the adapter did, each [B]; None where there is no adapter."""

    reward: Tensor
    attention_entropy: Tensor | None  # of the attention over the policy's states, mean over heads, nats
    adapter_scale: Tensor | None  # rms of A over rms of H_last


class FeedbackHead(nn.Module):
    """What R2M trains: the cross-attention and the scoring head phi.

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
    """The scoring head alone, learning on the text (the paper's Iterative RMHead): r = phi(H_last), in fp32."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.phi = frozen_head(head).requires_grad_(True)

    def forward(self, rte: Tensor, states: States | None, weight: float) -> Score:
        """rte [B, D_rm] -> Score; the states and their weight are not read."""
        return Score(self.phi(rte.float()).squeeze(1), None, None)


def frozen_head(head: nn.Linear) -> nn.Linear:
    """A copy of a scoring head in fp32 that nothing trains: the initial reward model's phi.

    A new module, not a deep copy: the head carries the backbone's hook, and under ZeRO stage 3 DeepSpeed's.
    """
    copy = nn.utils.skip_init(nn.Linear, head.in_features, 1, bias=head.bias is not None)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy.requires_grad_(False)
