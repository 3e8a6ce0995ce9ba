"""The feedback adapter: the reward token reads the policy's hidden states (arXiv 2601.22664, eqs. 3 and 4)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from r2m_cli.models.states import States


class CrossAttention(nn.Module):
    """Sequence-to-token cross-attention in an exact, memory-saving form: no keys, no values, no tensor of size S x d.

    There is one query per sequence, so softmax(q K^T / sqrt(d)) V W_o equals

        u = (H_last W_q) W_k^T / sqrt(d)      [B, D_p]   `query`
        a = softmax(h u), m = a^T h           [B, D_p]   `pool`
        A = (m W_v) W_o                       [B, D_rm]  `value`

    and costs O(S D_p) per sequence instead of O(S D_p d). With several heads, each has its own query from its d / heads
    columns (Vaswani et al. 2017, arXiv 1706.03762). The paper has one head, and its query comes from H_last.

    Args:
        rm_size: D_rm, width of the reward model.
        policy_size: D_p, width of the features of each token.
        inner_size: d, a multiple of `heads`.
        seed: of the initial weights. They are drawn from a separate generator, so that runs with and without an adapter
            see the same random numbers everywhere else.
        learned: q is a parameter, the same for every sequence, in place of H_last W_q (w_q is then q, [1, d]).
    """

    def __init__(
        self, rm_size: int, policy_size: int, inner_size: int, seed: int = 0, heads: int = 1, learned: bool = False
    ):
        super().__init__()
        self.heads, self.learned = heads, learned
        generator = torch.Generator().manual_seed(seed)

        def weight(rows: int, columns: int) -> nn.Parameter:
            bound = 1 / math.sqrt(rows)  # torch's default for a linear layer with `rows` inputs
            return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator))

        self.w_q = weight(1 if learned else rm_size, inner_size)
        self.w_k = weight(policy_size, inner_size)
        self.w_v = weight(policy_size, inner_size)
        self.w_o = weight(inner_size, rm_size)

    def query(self, rte: Tensor) -> Tensor:
        """u: the query of each reward token against the policy's states. [B, D_rm] -> [B, heads, D_p]."""
        q = self.w_q.expand(len(rte), -1) if self.learned else rte @ self.w_q
        keys = self.w_k.unflatten(1, (self.heads, -1))  # [D_p, heads, d / heads]
        return torch.einsum("bhd,phd->bhp", q.unflatten(1, (self.heads, -1)), keys) / math.sqrt(keys.shape[2])

    def value(self, pooled: Tensor) -> Tensor:
        """A from the pooled states m. [B, heads, D_p] -> [B, D_rm]."""
        values = self.w_v.unflatten(1, (self.heads, -1))
        return torch.einsum("bhp,phd->bhd", pooled, values).flatten(1) @ self.w_o

    def forward(self, rte: Tensor, states: States) -> tuple[Tensor, Tensor]:
        """rte [B, D_rm] -> A [B, D_rm], attention weights a [B, heads, T]."""
        visible = states.visible.repeat_interleave(self.heads, dim=0)
        pooled, attention = pool(self.query(rte).flatten(0, 1), States(states.hidden, visible))
        return self.value(pooled.unflatten(0, (-1, self.heads))), attention.unflatten(0, (-1, self.heads))


def pool(u: Tensor, states: States) -> tuple[Tensor, Tensor]:
    """Attention-pooled policy state m = softmax(h u)^T h, over each sequence's own states. u [B, D_p] -> m [B, D_p], a [B, T].

    The gradient flows only to u: the states belong to the policy, which the reward model does not train.
    """
    return _Pool.apply(u, states.hidden.to(u.dtype), states.visible)  # type: ignore[no-any-return, no-untyped-call]


class _Pool(torch.autograd.Function):
    """Neither forward nor backward allocates a tensor of size B x S x D_p; saved are a, m and a reference to the states."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, hidden: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        attention, pooled, parts = u.new_zeros(visible.shape), torch.empty_like(u), blocks(visible)
        for rows, span in parts:
            own = (u[rows] @ hidden[span].T).masked_fill_(~visible[rows, span], -torch.inf).softmax(dim=1)
            attention[rows, span], pooled[rows] = own, own @ hidden[span]
        ctx.save_for_backward(attention, pooled, hidden)
        ctx.parts = parts
        ctx.mark_non_differentiable(attention)
        return pooled, attention

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """du = sum_s a_s (h_s.g - m.g) h_s."""
        attention, pooled, hidden = ctx.saved_tensors
        du = torch.empty_like(pooled)
        for rows, span in ctx.parts:
            states, gradient = hidden[span], g[rows]
            inner = gradient @ states.T - (pooled[rows] * gradient).sum(dim=1, keepdim=True)
            du[rows] = (attention[rows, span] * inner) @ states
        return du, None, None


def blocks(visible: Tensor) -> list[tuple[slice, slice]]:
    """Split the rows into blocks, each with the range of states that its rows read: usually a group and its own states.

    Without blocks every sequence would be scored against the states of all. visible [B, T], every row with a state ->
    slices of rows that cover B, each with a slice of T that contains all states its rows read.
    """
    first = visible.byte().argmax(dim=1)
    last = visible.shape[1] - visible.flip(1).byte().argmax(dim=1)
    # A block ends before row i if row i and all later rows read only states after those of every earlier row.
    behind = first.flip(0).cummin(0).values.flip(0).tolist()
    ahead = last.cummax(0).values.tolist()
    starts = [0] + [i for i in range(1, len(ahead)) if behind[i] >= ahead[i - 1]]
    return [
        (slice(start, end), slice(behind[start], ahead[end - 1]))
        for start, end in zip(starts, [*starts[1:], len(ahead)])
    ]
