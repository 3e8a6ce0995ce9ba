"""Attention over packed groups, in which the K sequences of a group share the keys and values of their prefix.

Registered with transformers' attention interface, so every model that uses the interface can read packed rows. Calls
without a layout (generation, padded rows) are plain scaled_dot_product_attention.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from r2m_cli.maths.masking import length_mask

# engine.attention -> the name under which transformers knows it.
NAMES = {"sdpa": "r2m_shared_prefix", "flex": "r2m_shared_prefix_flex"}


class SharedAttention:
    """Which tokens attend to which in a packed row, T tokens of G groups: a prefix attends to itself, a sequence's own tokens
    attend to the prefix and to themselves.

    Both parts are computed in padded form, [G, P] and [B, O] with P and O the longest prefix and own part. The masks are
    built once and used by every layer.
    """

    def __init__(
        self,
        prefix: Tensor,
        own: Tensor,
        starts: Tensor,
        group_size: int,
        group: Tensor,
        row: Tensor,
        positions: Tensor,
    ):
        """prefix [G] and own [B] lengths; starts [G, K + 1], where each piece begins in the row; and for each of the T tokens
        its group, sequence (-1: all of the group) and position."""
        self.group_size = group_size
        self.group, self.row, self.positions = group, row, positions
        self.prefix = prefix
        widths = [int(lengths.max()) for lengths in (prefix, own)]
        masks = [length_mask(lengths, width) for lengths, width in zip((prefix, own), widths)]
        begins = (starts[:, 0], starts[:, 1:].flatten())
        steps = [torch.arange(width, device=prefix.device) for width in widths]
        # Padding points at token 0: its keys are masked, and its outputs are never used.
        self.prefix_at, self.own_at = (
            torch.where(mask, begin[:, None] + step, 0) for mask, begin, step in zip(masks, begins, steps)
        )
        # The way back: for each token of the row, its index in the concatenation of [G * P] and [B * O].
        places = torch.cat([mask.flatten() for mask in masks]).nonzero().squeeze(1)
        order = torch.cat([at[mask] for at, mask in zip((self.prefix_at, self.own_at), masks)])
        self.back = torch.empty_like(places).index_copy_(0, order, places)
        self._masks: dict[int | None, tuple[Tensor | None, Tensor]] = {}
        self._block_masks: dict[int | None, BlockMask] = {}

    def masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Masks of the keys that prefixes see, [P, P] (None: causal), and that own tokens see, [B or 1, 1, O, P + O]."""
        if window not in self._masks:
            self._masks[window] = self._make_masks(window)
        return self._masks[window]

    def block_mask(self, window: int | None) -> BlockMask:
        """The same for flex attention, over the complete row."""
        if window not in self._block_masks:
            group, row, at = self.group, self.row, self.positions

            def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                seen = (group[q] == group[k]) & ((row[k] < 0) | (row[k] == row[q])) & (at[k] <= at[q])
                return seen if window is None else seen & (at[q] - at[k] < window)

            size = len(row)
            self._block_masks[window] = create_block_mask(sees, None, None, size, size, device=str(row.device))
        return self._block_masks[window]

    def _make_masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        device, (longest, width) = self.prefix.device, (self.prefix_at.shape[1], self.own_at.shape[1])
        step = torch.arange(longest, device=device)
        prefix_mask = None
        if window is not None and window < longest:
            distance = step[:, None] - step
            prefix_mask = (distance >= 0) & (distance < window)
        # If all prefixes have one length, one mask serves all sequences.
        lengths = self.prefix if int(self.prefix.min()) < longest else self.prefix[:1]
        lengths = lengths.repeat_interleave(self.group_size) if len(lengths) > 1 else lengths
        own = torch.arange(width, device=device)
        seen = length_mask(lengths, longest)[:, None, :].expand(-1, width, -1)
        causal = (own[:, None] >= own).expand(len(lengths), -1, -1)
        mask = torch.cat([seen, causal], dim=2)
        if window is not None:
            at = lengths[:, None] + own  # positions of the queries, and of their own keys
            keys = torch.cat([step.expand(len(lengths), -1), at], dim=1)
            mask = mask & (at[:, :, None] - keys[:, None, :] < window)
        return prefix_mask, mask[:, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_attention: SharedAttention | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    Raises NotImplementedError for features that packed rows do not support; `sharing.why_not` then uses padded rows instead.
    """
    if shared_attention is None:
        one_token = query.shape[2] == 1 and not dropout and not _unknown(kwargs, "softcap")
        if one_token and attention_mask is not None and attention_mask.shape[1] == 1:
            return _attend_one(query, key, value, attention_mask, scaling)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **kwargs,
        )  # fmt: skip
    _refuse_unknown(module, dropout, kwargs, "softcap")
    lay = shared_attention
    prefix_mask, own_mask = lay.masks(sliding_window)
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # [T, H, D]
    q, k, v = (_take(states, lay.prefix_at) for states in flat)  # [G, P, H, D]
    outputs = []
    if q.shape[1]:
        outputs.append(_sdpa(q, k, v, prefix_mask, scaling, causal=prefix_mask is None))
    if lay.own_at.shape[1]:
        q_own, k_own, v_own = (_take(states, lay.own_at) for states in flat)  # [B, O, H, D]
        keys, values = (_behind(*pair, lay.group_size) for pair in ((k, k_own), (v, v_own)))
        outputs.append(_sdpa(q_own, keys, values, own_mask, scaling, causal=False))
    joined = torch.cat([states.flatten(0, 1) for states in outputs])
    return joined.index_select(0, lay.back)[None], None


def _attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> tuple[Tensor, None]:
    """`attend` for one new token per row, without repeating keys and values: the H / H_kv heads that share a key head take
    the place of as many queries. mask: [B, 1, 1, S], the same for all heads."""
    shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    output = F.scaled_dot_product_attention(shared, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(len(query), 1, -1, value.shape[3]), None


def attend_flex(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_attention: SharedAttention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `attend`, with one flex-attention kernel over the row, which skips blocks that are fully masked; it can cap scores."""
    if shared_attention is None:
        return attend(
            module, query, key, value, attention_mask, scaling, dropout, None, sliding_window, softcap=softcap, **kwargs
        )
    _refuse_unknown(module, dropout, kwargs)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap
        return softcap * torch.tanh(score / softcap)

    output = _flex(query.device.type)(
        query, key, value, score_mod=capped if softcap else None, block_mask=shared_attention.block_mask(sliding_window),
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output.transpose(1, 2), None


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention  # type: ignore[return-value]


def _refuse_unknown(module: Any, dropout: float, options: dict[str, Any], *more: str) -> None:
    unknown = _unknown(options, *more)
    if unknown or dropout or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'dropout, or in both directions'}")


def _unknown(options: dict[str, Any], *more: str) -> list[str]:
    return [name for name in ("s_aux", "position_bias", *more) if options.get(name) is not None]


def _take(states: Tensor, at: Tensor) -> Tensor:
    """[T, H, D] at [N, L] -> [N, L, H, D]."""
    return states.index_select(0, at.flatten()).unflatten(0, at.shape)


def _behind(prefix: Tensor, own: Tensor, group_size: int) -> Tensor:
    """Each sequence's own keys appended to those of its group's prefix. [G, P, H, D], [B, O, H, D] -> [B, P + O, H, D]."""
    repeated = prefix[:, None].expand(-1, group_size, -1, -1, -1)
    return torch.cat([repeated, own.unflatten(0, (-1, group_size))], dim=2).flatten(0, 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, causal: bool) -> Tensor:
    """[N, L, H, D] each, fewer heads in k and v with grouped queries -> [N, L, H, D]."""
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    grouped = q.shape[1] // k.shape[1]
    if (
        grouped > 1 and mask is not None and q.is_cuda
    ):  # on such devices the fast kernels take a mask or grouped queries, not both
        k, v, grouped = k.repeat_interleave(grouped, dim=1), v.repeat_interleave(grouped, dim=1), 1
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, is_causal=causal, enable_gqa=grouped > 1
    )
    return output.transpose(1, 2)


for name, function in zip(NAMES.values(), (attend, attend_flex), strict=True):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
