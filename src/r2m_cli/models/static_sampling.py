"""The token loop of `sample` on the device: fixed shapes, captured as CUDA graphs, the host asked only every few tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from r2m_cli.models.body import body
from r2m_cli.models.draws import inverse_cdf
from r2m_cli.models.graphs import Capture
from r2m_cli.models.static_decoding import StaticDecoder, columns_for

CHECK = 8  # tokens after which it is asked which rows still run
WORTH = 4  # tokens that must be left for a graph to be recorded, which costs about two steps
KEPT = 0.05  # of the device's memory, for buffers that stay between two calls with the graphs that use them
LOGITS = 4  # fp32 tables of the logits' size that a graph's memory holds: logits, tempered, their softmax, its sums
NONE = -1  # in place of a token, behind the end of a response


class Sampled(Protocol):
    """What is needed of a policy."""

    lm: Any

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D_p] -> [..., V]."""
        ...


class Shape(NamedTuple):
    """What is fixed in a graph beside the weights."""

    prompts: int
    group_size: int
    columns: int
    new_tokens: int
    temperature: float
    ends: tuple[int, ...]
    pad_id: int


class StaticSampler:
    """Samples as `sample` does, the same tokens up to rounding.

    Graphs and buffers of a shape serve later calls, while the weights stay where they are in memory (an optimiser step
    changes them in place; what ZeRO-3 gathers lies elsewhere each time) and the buffers are small.

    Args:
        capture: makes what captures the steps of one shape.
        memory: bytes that buffers may take between two calls.
    """  # fmt: skip

    def __init__(self, capture: Callable[[], Capture], memory: float):
        self._capture, self._memory = capture, memory
        self._loops: dict[Shape, _Loop] = {}
        self._weights: tuple[int, ...] = ()

    @torch.no_grad()
    def sample(
        self,
        policy: Sampled,
        prompts: list[list[int]],
        group_size: int,
        uniforms: Tensor,
        temperature: float,
        eos_ids: set[int],
        pad_id: int,
    ) -> list[list[int]]:
        """As `generate.sample`. Raises CannotCapture."""
        weights = tuple(tensor.data_ptr() for tensor in (*policy.lm.parameters(), *policy.lm.buffers()))
        if weights != self._weights:
            self.forget()
            self._weights = weights
        new_tokens = uniforms.shape[1]
        columns = columns_for(prompts, new_tokens)
        shape = Shape(len(prompts), group_size, columns, new_tokens, temperature, tuple(sorted(eos_ids)), pad_id)
        # Taken out while it is used, so that a failure leaves nothing half-written behind.
        loop = self._loops.pop(shape, None)
        if loop is None:
            decoder = StaticDecoder(body(policy.lm), prompts, group_size, pad_id, new_tokens)
            loop = _Loop(decoder, shape, self._capture())
        else:
            loop.decoder.begin(prompts)
        responses = loop.run(policy, uniforms)
        self._loops[shape] = loop
        while self._loops and sum(kept.bytes for kept in self._loops.values()) > self._memory:
            self._loops.pop(next(iter(self._loops)))  # the one whose last use is longest ago
        return responses

    def forget(self) -> None:
        """Free all graphs and buffers."""
        self._loops.clear()


class _Loop:
    """The tensors of one shape, and the graphs that work on them, one for each number of rows."""

    def __init__(self, decoder: StaticDecoder, shape: Shape, capture: Capture):
        device, total = decoder.token.device, len(decoder.token)
        self.decoder, self.temperature, self._capture = decoder, shape.temperature, capture
        self.ends = torch.tensor(shape.ends, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(total, shape.new_tokens, device=device)
        self.tokens = torch.zeros(total, shape.new_tokens, dtype=torch.long, device=device)
        self.going = torch.zeros(total, dtype=torch.bool, device=device)
        self.count = torch.zeros(1, dtype=torch.long, device=device)  # tokens drawn
        self._logits = 0  # bytes of the largest table of logits
        self._warm: set[int] = set()
        self._graphs: dict[int, Callable[[], None]] = {}

    @property
    def bytes(self) -> int:
        """What it holds between two calls, about: keys, values and the graphs' own memory."""
        return self.decoder.bytes + LOGITS * self._logits

    def run(self, policy: Sampled, uniforms: Tensor) -> list[list[int]]:
        """Sample, the decoder having read the prompts."""
        decoder, (total, width) = self.decoder, uniforms.shape
        self.uniforms.copy_(uniforms)
        self.tokens.fill_(NONE)
        self.going.fill_(True)
        self.count.zero_()
        written = torch.empty_like(self.tokens)  # of all responses, in their own order
        rows = torch.arange(total, device=self.tokens.device)  # the responses that the first of the buffers' rows are
        self._draw(policy, decoder.states)
        step = partial(self._step, policy)
        for done in range(1, width):
            if done % CHECK == 0:
                running = self.going[: len(rows)].nonzero().squeeze(1)  # waits for the device
                if not len(running):
                    break
                size = bucket(len(running))
                if size < decoder.rows:
                    written[rows] = self.tokens[: len(rows)]
                    rows = rows[running]
                    self._shrink(running, size)
            self._advance(step, width - done)
        written[rows] = self.tokens[: len(rows)]
        return [[token for token in row if token != NONE] for row in written.tolist()]

    def _step(self, policy: Sampled) -> None:
        """Read the running rows' tokens and draw the next ones: what is captured."""
        self._draw(policy, self.decoder.forward())

    def _draw(self, policy: Sampled, states: Tensor) -> None:
        """Draw each running row's next token from its states [rows, D]; one that has ended gets none."""
        rows = len(states)
        logits = policy.logits(states).float()
        self._logits = max(self._logits, logits.nbytes)
        if self.temperature > 0:
            uniforms = self.uniforms[:rows].index_select(1, self.count).squeeze(1)
            drawn = inverse_cdf(logits / self.temperature, uniforms)
        else:
            drawn = logits.argmax(dim=1)
        going = self.going[:rows]
        self.tokens[:rows].index_copy_(1, self.count, drawn.masked_fill(~going, NONE)[:, None])
        self.decoder.token[:rows].copy_(drawn)
        going.logical_and_((drawn[:, None] != self.ends).all(dim=1))
        self.count.add_(1)

    def _advance(self, step: Callable[[], None], left: int) -> None:
        """One step, by a graph where that pays."""
        rows = self.decoder.rows
        if rows not in self._warm:
            self._capture.warm_up(step)
            self._warm.add(rows)
            return
        if rows not in self._graphs and left >= WORTH:
            self._graphs[rows] = self._capture.record(step)
        self._graphs.get(rows, step)()

    def _shrink(self, running: Tensor, size: int) -> None:
        """Go on with `size` rows: the running ones, and copies of the first of them that nobody looks at."""
        kept = torch.cat([running, running[:1].expand(size - len(running))])
        for buffer in (self.uniforms, self.tokens, self.going):
            buffer[:size].copy_(buffer[kept])
        self.decoder.shrink(kept)


def bucket(rows: int) -> int:
    """The smallest power of two that is not below `rows`."""
    return 1 << (rows - 1).bit_length()
