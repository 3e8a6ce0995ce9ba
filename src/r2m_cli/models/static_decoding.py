"""A decoder whose tensors never move or change their shape, so that one decoded token can be captured as a CUDA graph."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

from r2m_cli.models.decoding import left_padded

BLOCK = (
    128  # columns of the buffers are a multiple of it: few shapes, and rows aligned as attention's kernels want them
)
TRIED = 8  # new tokens that there is room for unless it is said


class StaticDecoder:
    """Prompts are read once, as in `SharedPrefill`; their keys and values are copied K times into buffers of fixed shape.

    Every layer's buffer is as long as prompt and response, also where its attention has a window: transformers makes causal
    mask and window from the column that is written, a tensor, and so the same operations serve every token.
    The running rows are the first `rows` of each buffer.
    """

    states: Tensor  # [rows, D], of the last token read

    def __init__(self, body: Any, prompts: list[list[int]], group_size: int, pad_id: int, new_tokens: int = TRIED):
        device = next(body.parameters()).device
        total = len(prompts) * group_size
        self._body, self._group_size, self._pad_id = body, group_size, pad_id
        self.columns = columns_for(prompts, new_tokens)
        self.token = torch.zeros(total, dtype=torch.long, device=device)  # the next one to read
        self.position = torch.zeros_like(self.token)  # its position
        self.column = torch.zeros((), dtype=torch.long, device=device)  # the column that it is written to, of all rows
        self.mask = torch.ones(total, self.columns, dtype=torch.bool, device=device)  # false on padding before a prompt
        self._buffers: list[tuple[Tensor, Tensor]] = []  # of each layer: keys and values, [total, H_kv, columns, D_h]
        self.begin(prompts)

    def begin(self, prompts: list[list[int]]) -> None:
        """Prefill the buffers with a new batch of the same size. Old content is overwritten, and every row is active.

        Raises NotImplementedError for a model that remembers anything but keys and values of every token.
        """
        tokens, mask, positions = left_padded(prompts, self._pad_id, self.token.device)
        longest = tokens.shape[1]
        prefix = DynamicCache()
        output = self._body(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=prefix, use_cache=True
        )
        pairs = [_keys_and_values(layer) for layer in prefix.layers]
        if not self._buffers:
            self._buffers = [(self._buffer(keys), self._buffer(values)) for keys, values in pairs]
        for pair, buffers in zip(pairs, self._buffers, strict=True):
            for source, buffer in zip(pair, buffers):
                buffer[:, :, :longest].unflatten(0, (-1, self._group_size)).copy_(source[:, None])
        self.mask.fill_(True)[:, :longest] = mask.repeat_interleave(self._group_size, dim=0)
        self.position.copy_((positions[:, -1] + 1).repeat_interleave(self._group_size))
        self.column.fill_(longest)
        self._run_first(len(self.token))
        self.states = output.last_hidden_state[:, -1].repeat_interleave(self._group_size, dim=0)

    def forward(self) -> Tensor:
        """Read `token` of every running row, without waiting for the device. Gives the states after it, [rows, D]."""
        output = self._body(
            input_ids=self.token[: self.rows, None], attention_mask=self.mask[: self.rows],
            position_ids=self.position[: self.rows, None], past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        self.position.add_(1)
        self.column.add_(1)
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def shrink(self, kept: Tensor) -> None:
        """Keep only the rows `kept`, moved to the front of the buffers; the others stop. kept: [rows'] long, with repeats or not."""
        for buffer in (self.token, self.position, self.mask, *(b for pair in self._buffers for b in pair)):
            buffer[: len(kept)].copy_(buffer[kept])
        self._run_first(len(kept))

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """As in `Decoder`."""
        self.token[: self.rows].copy_(tokens)
        if not going.all():
            self.shrink(going.nonzero().squeeze(1))
        self.states = self.forward()

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(buffer.nbytes for pair in self._buffers for buffer in pair)

    def _buffer(self, source: Tensor) -> Tensor:
        """Room for all rows and columns. Zeros: what nobody has written is masked, but must be finite."""
        return source.new_zeros(len(self.token), source.shape[1], self.columns, source.shape[3])

    def _run_first(self, rows: int) -> None:
        self.rows = rows
        self._cache = Cache(layers=[_Layer(keys[:rows], values[:rows], self.column) for keys, values in self._buffers])


class _Layer(StaticLayer):
    """One layer's buffers. All layers share the column that is written, which the decoder moves on after the last of them."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor):
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length, self.is_initialized = keys, values, column, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values [rows, H_kv, 1, D_h] in place; gives all of the buffers."""
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.cumulative_length[None], key_states)
        self.values.index_copy_(2, self.cumulative_length[None], value_states)
        return self.keys, self.values


def _keys_and_values(layer: Any) -> tuple[Tensor, Tensor]:
    if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
        raise NotImplementedError("a cache that is not keys and values of every token")
    return layer.keys, layer.values


def columns_for(prompts: list[list[int]], new_tokens: int) -> int:
    """Columns that the longest prompt and its response need, in whole blocks."""
    return -(-(max(map(len, prompts)) + new_tokens) // BLOCK) * BLOCK
