"""Three ways to read prompts and then one token after another; trials pick the fastest that is correct for a model."""

from itertools import groupby
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from r2m_cli.console import say
from r2m_cli.distributed.shards import layer_by_layer
from r2m_cli.models.body import body
from r2m_cli.models.sequences import Padded
from r2m_cli.models.windows import narrowed

TOLERANCE = {torch.float32: 1e-3}  # mean relative error of the states; a wrong cache gives about 1
HALF = 0.1  # the same in half precision, where a router may send a token to another expert
SLOW, READS = (
    4.0,
    20,
)  # seconds for the probe's texts from which a note is printed; at most this many texts are read after them
CACHES = ("past_key_values", "cache_params", "state")  # transformers' names for a model's cache


class Decoder(Protocol):
    """Reads n prompts, each continued K times, a group's K adjacent. `states` are those at the last token read."""

    states: Tensor  # [running rows, D]

    def __init__(self, body: Any, prompts: list[list[int]], group_size: int, pad_id: int): ...

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """Read the next token of each running row, and drop the rows that do not continue.

        Args:
            tokens: [running rows].
            going: [running rows] bool, at least one true; a row that is false is not read again.
        """
        ...


class SharedPrefill:
    """Prompts are padded on the left and read once; their cache is repeated K times, and finished rows are dropped from it."""

    def __init__(self, body: Any, prompts: list[list[int]], group_size: int, pad_id: int):
        tokens, mask, positions = left_padded(prompts, pad_id, next(body.parameters()).device)
        output = body(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True)
        self._body, self._cache = body, output.past_key_values
        self._cache.batch_repeat_interleave(group_size)
        self._mask = mask.repeat_interleave(group_size, dim=0)
        self._position = positions[:, -1].repeat_interleave(group_size)
        self.states = output.last_hidden_state[:, -1].repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """As in `Decoder`."""
        if not going.all():
            keep = going.nonzero().squeeze(1)
            self._cache.batch_select_indices(keep)
            tokens, self._mask, self._position = tokens[keep], self._mask[keep], self._position[keep]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._position = self._position + 1
        output = self._body(
            input_ids=tokens[:, None], attention_mask=self._mask, position_ids=self._position[:, None],
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        self.states = output.last_hidden_state[:, -1]


def left_padded(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask (1 on a prompt's own tokens) and positions, [n, P] each, of prompts that all end in the last column."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return tokens, mask, (mask.cumsum(1) - 1).clamp_min(0)


class OwnCache:
    """A cache in which no row is padded, repeated or dropped, for recurrent and convolutional states.

    Prompts of one length are read together, once per response. A finished row keeps being read with the others.
    """

    def __init__(self, body: Any, prompts: list[list[int]], group_size: int, pad_id: int):
        self._body = body
        device = next(body.parameters()).device
        rows = [p for p in prompts for _ in range(group_size)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self._blocks = [
            torch.tensor(list(block), device=device) for _, block in groupby(order, key=lambda i: len(rows[i]))
        ]
        self._caches: list[dict[str, Any]] = [{} for _ in self._blocks]
        self._running = torch.arange(len(rows), device=device)
        self._all = torch.empty(0)  # [all rows, D]; those of finished rows are unused
        self._run([torch.tensor([rows[i] for i in block.tolist()], device=device) for block in self._blocks])

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """As in `Decoder`."""
        last = tokens.new_zeros(len(self._all)).index_copy(0, self._running, tokens)
        self._running = self._running[going]
        self._run([last[block, None] for block in self._blocks])

    def _run(self, tokens: list[Tensor]) -> None:
        states = [self._all[block] for block in self._blocks] if len(self._all) else [torch.empty(0)] * len(tokens)
        for i, block in enumerate(self._blocks):
            if torch.isin(block, self._running).any():
                output = self._body(input_ids=tokens[i], use_cache=True, **self._caches[i])
                name = next(name for name in CACHES if output.get(name) is not None)
                self._caches[i], states[i] = {name: output[name]}, output.last_hidden_state[:, -1]
        self._all = torch.cat(states)[torch.cat(self._blocks).argsort()]
        self.states = self._all[self._running]


class NoCache:
    """All tokens of every running row are read again for each new token, as in training."""

    def __init__(self, body: Any, prompts: list[list[int]], group_size: int, pad_id: int):
        self._body, self._pad_id = body, pad_id
        device = next(body.parameters()).device
        lengths = [len(p) for p in prompts]
        rows = [p + [pad_id] * (max(lengths) - len(p)) for p in prompts]
        self._tokens = torch.tensor(rows, device=device).repeat_interleave(group_size, dim=0)
        self._lengths = torch.tensor(lengths, device=device).repeat_interleave(group_size)
        self._run()

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """As in `Decoder`."""
        lengths = self._lengths[going]
        wider = torch.nn.functional.pad(self._tokens[going], (0, 1), value=self._pad_id)
        self._tokens = wider.scatter(1, lengths[:, None], tokens[going, None])
        self._lengths = lengths + 1
        self._run()

    def _run(self) -> None:
        layout = Padded(self._tokens, self._lengths)
        rows = torch.arange(len(self._tokens), device=self._tokens.device)
        self.states = layout.run(self._body)[layout.at(rows, self._lengths - 1)]


DECODERS: tuple[type[Decoder], ...] = (SharedPrefill, OwnCache, NoCache)  # the fastest first
NOTES = {
    OwnCache: "samples without a shared prompt cache, slower",
    NoCache: "samples without a cache, much slower: every new token reads the complete text again",
}


@torch.no_grad()
def choose(lm: Any) -> type[Decoder] | None:
    """The fastest decoder whose states equal those of every text read alone, unpadded and without a cache.

    Attention windows are narrowed during the trial, so that they take effect on short texts. None if even right-padded rows,
    as in training, give other states than the texts alone, or if the model attends to later tokens.
    """
    model = body(lm)
    with narrowed(lm), layer_by_layer(lm):
        try:
            begun = perf_counter()
            alone = _alone(model)
            if (took := perf_counter() - begun) > SLOW:
                say(
                    f"note: a {lm.config.model_type} model takes {took / len(alone):.1f} s for a text of ten tokens here; testing how "
                    f"it can be sampled takes up to {READS * took / len(alone):.0f} s"
                )
        except Exception:  # an unknown architecture can raise anything
            return None
        if not _agrees(NoCache, model, alone):
            return None
        return next((decoder for decoder in DECODERS[:-1] if _agrees(decoder, model, alone)), NoCache)


@torch.no_grad()
def agrees(decoder: type[Decoder], lm: Any) -> bool:
    """Whether this decoder gives the states of every text alone; windows are narrow, as in `choose`."""
    with narrowed(lm):
        return _agrees(decoder, body(lm), _alone(body(lm)))


# Prompts of two lengths with two texts each: the tokens after them, one at a time; one text ends early.
PROMPTS, BEHIND = ([1, 2, 3, 4, 5, 6, 2], [3, 1, 4]), ([3, 2, 6], [4], [5, 5, 1], [6, 1, 4])


def _alone(body: Any) -> list[Tensor]:
    """The states of every complete text, each read alone. [S, D] each. Some architectures take seconds per text."""
    device = next(body.parameters()).device
    texts = [[*prompt, *BEHIND[2 * i + j]] for i, prompt in enumerate(PROMPTS) for j in range(2)]
    read = (body(input_ids=torch.tensor([text], device=device), use_cache=False) for text in texts)
    return [output.last_hidden_state[0].float() for output in read]


def _agrees(decoder: type[Decoder], body: Any, alone: list[Tensor]) -> bool:
    """Whether the decoder gives, token by token, the states of the complete texts."""
    device = next(body.parameters()).device
    starts = [len(prompt) - 1 for prompt in PROMPTS for _ in range(2)]
    errors = []
    try:
        tried = decoder(body, list(PROMPTS), 2, 0)
        running = list(range(len(alone)))
        for step in range(len(BEHIND[0]) + 1):
            expected = torch.stack([alone[i][starts[i] + step] for i in running])
            errors.append((tried.states.float() - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12))
            if step < len(BEHIND[0]):
                tokens = torch.tensor([BEHIND[i][min(step, len(BEHIND[i]) - 1)] for i in running], device=device)
                going = [step < len(BEHIND[i]) for i in running]
                running = [i for i in running if step < len(BEHIND[i])]
                tried.advance(tokens, torch.tensor(going, device=device))
    except Exception:  # an unknown architecture can raise anything
        return False
    return bool(torch.cat(errors).mean() <= TOLERANCE.get(tried.states.dtype, HALF))
