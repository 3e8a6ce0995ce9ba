"""Groups of sequences with a common prefix, and the two ways to lay them out for one forward of a model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from r2m_cli.maths.masking import length_mask
from r2m_cli.models.shared_attention import SharedAttention


class Layout(Protocol):
    """Where each token of B sequences lies among the T states of one forward."""

    def run(self, body: Any) -> Tensor:
        """Last-layer states of a transformers model without its head. [T, D]."""
        ...

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward."""
        ...

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """The index, 0 to T - 1, of the state at a position of a sequence. [N], [N] -> [N]."""
        ...

    def visible(self, limit: Tensor) -> Tensor:
        """Which states belong to each sequence's first `limit` [B] tokens. [B, T]."""
        ...


class _Runs:
    def run(self: Layout, body: Any) -> Tensor:
        states: Tensor = body(**self.inputs(), use_cache=False).last_hidden_state
        return states.flatten(0, 1)


class Padded(_Runs):
    """One row per sequence, padded on the right: every model can read it. T = B * S."""

    def __init__(self, tokens: Tensor, lengths: Tensor, types: Tensor | None = None):
        """tokens [B, S]; the first `lengths` [B] of each row are read; token_type_ids [B, S] if the model takes them."""
        width = int(lengths.max())
        self.tokens = tokens[:, :width]
        self.mask = length_mask(lengths, width)
        self.types = None if types is None else types[:, :width]

    def inputs(self) -> dict[str, Any]:
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.tokens, "attention_mask": self.mask.long()} | types

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        return row * self.tokens.shape[1] + position

    def visible(self, limit: Tensor) -> Tensor:
        rows, width = self.tokens.shape
        own = torch.eye(rows, dtype=torch.bool, device=self.tokens.device)
        return (own[:, :, None] & length_mask(limit, width)).view(rows, rows * width)


class SharedPrefix(_Runs):
    """All groups in one row, without padding: a group's prefix once, then the own tokens of each of its K sequences.

    Every token has the same position and sees the same tokens as in a separate sequence, so states and gradients are the
    same numbers. The other K - 1 copies of the prefix are not computed.
    """

    def __init__(self, tokens: Tensor, prefix_lengths: Tensor, lengths: Tensor, group_size: int):
        """
        Args:
            tokens: [B, S]; the first `lengths` [B] of each row are read.
            prefix_lengths: [B], equal within a group, whose rows agree up to there. May exceed `lengths`.
            group_size: K; a group's rows are adjacent. With 1 the whole sequence is the prefix.
        """  # fmt: skip
        prefix_lengths = lengths if group_size == 1 else prefix_lengths
        prefix = prefix_lengths[::group_size]  # [G]
        own = (lengths - prefix_lengths).clamp_min(0).view(-1, group_size)  # [G, K]
        lay = torch.arange(int(prefix.sum() + own.sum()), device=tokens.device)
        pieces = torch.cat([prefix[:, None], own], dim=1)  # [G, K + 1] lengths, in the order of the row
        starts = (pieces.flatten().cumsum(0) - pieces.flatten()).view_as(pieces)
        piece = torch.arange(pieces.numel(), device=tokens.device).repeat_interleave(pieces.flatten())  # [T]
        member = piece % (group_size + 1) - 1  # -1: the prefix
        self.group_size, self.prefix, self.starts = group_size, prefix, starts
        self.group = piece // (group_size + 1)  # [T]
        self.row = torch.where(member < 0, -1, self.group * group_size + member)  # [T] the sequence, -1: all of a group
        self.positions = lay - starts.flatten()[piece] + torch.where(member < 0, 0, prefix[self.group])
        self.tokens = tokens[torch.where(member < 0, self.group * group_size, self.row), self.positions]
        self.attention = SharedAttention(
            prefix, own.flatten(), starts, group_size, self.group, self.row, self.positions
        )

    def inputs(self) -> dict[str, Any]:
        # transformers passes a 4-D mask through unchanged: no T x T mask is built, and `attend` does not need one.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.tokens.device)
        return {
            "input_ids": self.tokens[None],
            "position_ids": self.positions[None],
            "attention_mask": no_mask,
            "shared_attention": self.attention,
        }

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        group, member = row // self.group_size, row % self.group_size
        beyond = position - self.prefix[group]
        return torch.where(beyond < 0, self.starts[group, 0] + position, self.starts[group, member + 1] + beyond)

    def visible(self, limit: Tensor) -> Tensor:
        row = torch.arange(len(limit), device=limit.device)[:, None]
        mine = (self.row == row) | ((self.row < 0) & (self.group == row // self.group_size))
        return mine & (self.positions < limit[:, None])


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts with responses to score. Derived tensors are cached: every model and every epoch needs them again."""

    tokens: Tensor  # [B, S] prompt, response and padding on the right
    prompt_lengths: Tensor  # [B] at least 1, equal within a group
    response_lengths: Tensor  # [B]
    group_size: int  # K; the K rows of a group are adjacent and begin with the same prompt

    @property
    def lengths(self) -> Tensor:
        """[B] tokens that a model reads: all but the last, whose state predicts nothing. The S-1 states of the paper."""
        return self.prompt_lengths + self.response_lengths - 1

    def layout(self, shared: bool) -> Layout:
        """With one copy of each prompt, or with a separate row for every sequence."""
        return self._shared if shared else self._padded

    @cached_property
    def _shared(self) -> Layout:
        return SharedPrefix(self.tokens, self.prompt_lengths, self.lengths, self.group_size)

    @cached_property
    def _padded(self) -> Layout:
        return Padded(self.tokens, self.lengths)

    @cached_property
    def response_mask(self) -> Tensor:
        """[B, R] true on response tokens; R is the longest response."""
        return length_mask(self.response_lengths, int(self.response_lengths.max()))

    @cached_property
    def response_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """All response tokens, row by row: their sequence, the position whose state predicts them, and their id; each [N]."""
        row, column = self.response_mask.nonzero(as_tuple=True)
        position = self.prompt_lengths[row] + column
        return row, position - 1, self.tokens[row, position]

    def table(self, values: Tensor) -> Tensor:
        """One number per response token as a table [B, R], 0 on padding."""
        return values.new_zeros(self.response_mask.shape).masked_scatter(self.response_mask, values)


def pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor, padded on the right, and their lengths. -> [B, S], [B]."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) for row in rows])
