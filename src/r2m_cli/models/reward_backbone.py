"""The reward model's frozen backbone: a conversation's tokens -> its reward token embedding."""

import torch
from torch import Tensor, nn

from r2m_cli.errors import UserError
from r2m_cli.models.sequences import Layout, Padded, SharedPrefix
from r2m_cli.models.sharing import why_not
from r2m_cli.models.states import Features, States


class RewardBackbone(nn.Module):
    """Any sequence-classification model with one output: the input of its last linear layer is the RTE, H_last.

    The head's input is captured while the model runs, so decoders (a head on every position) and encoders (a head on a
    pooled state) need no separate code. If there is a state for every position, the RTE is picked by length, never by the
    pad id: with pad = EOS the pad id would pick the wrong token. Replies to one prompt share it, as in `Policy`.
    """

    def __init__(
        self, classifier: nn.Module, attention: str = "sdpa", features: str = "states", boundary: int | None = None
    ):
        """
        Args:
            boundary: `ChatFormat.boundary`: each row holds two texts, and the model gets their token_type_ids if it takes
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
        """The head's input: [T, D_rm], or an encoder's pooled state [B, D_rm]."""
        self.classifier(**layout.inputs())
        state, self._captured = self._captured, None
        assert state is not None, "the classifier did not run its own head"
        return state.flatten(0, -2)

    def forward(
        self, tokens: Tensor, lengths: Tensor, group_size: int = 1, with_states: bool = False
    ) -> Tensor | tuple[Tensor, States]:
        """tokens [B, S] (padding on the right), lengths [B] -> RTE [B, D_rm]; if asked, also the states for the adapter.

        The `group_size` adjacent rows of a group are read with one copy of their common prefix.
        """
        if self.boundary is not None:
            layout: Layout = Padded(tokens, lengths, segments(tokens, lengths, self.boundary))
        elif self.unshared:
            layout = Padded(tokens, lengths)
        else:
            layout = SharedPrefix(tokens, common_prefix(tokens, lengths, group_size), lengths, group_size)
        state = self._states(layout)
        rows = torch.arange(len(tokens), device=tokens.device)
        if len(state) == len(tokens):  # pooled by an encoder
            if self.features.kind != "states":
                raise UserError(
                    f"feedback.features={self.features.kind}: the reward model pools its states into one that belongs to no token; "
                    "with feedback.source=reward it needs feedback.features=states"
                )
            return (state, States(state, rows[:, None] == rows)) if with_states else state
        rte = state[layout.at(rows, lengths - 1)]
        return (rte, States(self.features(state), layout.visible(lengths))) if with_states else rte


def common_prefix(tokens: Tensor, lengths: Tensor, group_size: int) -> Tensor:
    """Length of the common prefix of each group's rows, always less than the shortest row. [B, S], [B] -> [B].

    It is computed from the tokens themselves. If a template or tokenizer merges the end of the prompt with the beginning of
    a reply, or a conversation is cut on the left, less is shared, but never wrong tokens.
    """
    groups = tokens.view(-1, group_size, tokens.shape[1])
    same = (groups == groups[:, :1]).all(dim=1)
    common = same.long().cumprod(dim=1).sum(dim=1)
    shortest = lengths.view(-1, group_size).min(dim=1).values
    return torch.minimum(common, shortest - 1).repeat_interleave(group_size)


def segments(tokens: Tensor, lengths: Tensor, boundary: int) -> Tensor:
    """token_type_ids: 0 for the question's tokens, 1 for the answer's. [B, S], [B] -> [B, S].

    A row is "[CLS] question [SEP] answer [SEP]", or the end of that. A token with at most one separator at or after it belongs
    to the answer. It is computed from the tokens, so rows that were cut on the left need no further information.
    """
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    separators = ((tokens == boundary) & inside).long()
    behind = separators.flip(1).cumsum(dim=1).flip(1)  # separators at or after each position
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


def frozen_head(head: nn.Linear) -> nn.Linear:
    """A frozen fp32 copy of a scoring head: the initial reward model's phi.

    A new module, not a deep copy: the head carries the backbone's hook and, under ZeRO stage 3, DeepSpeed's hooks.
    """
    copy = nn.utils.skip_init(nn.Linear, head.in_features, 1, bias=head.bias is not None)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy.requires_grad_(False)
