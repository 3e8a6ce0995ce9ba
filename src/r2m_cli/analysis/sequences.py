"""Which labelled sequences are compared, and which two make a pair: a function of the data and the seed, written down."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r2m_cli.config.schema import AnalysisConfig
from r2m_cli.conversation import Pair, Prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError
from r2m_cli.seeds import Stream, draw_seed

CHOSEN, REJECTED = "chosen", "rejected"
BEGINNING = 32  # characters, for each token that may be read, that are enough to see that a prompt is too long


@dataclass(frozen=True)
class LabelledSequence:
    """A prompt with one of the two replies that were compared."""

    row: int  # place of its pair among the labelled pairs, from 0
    where: str  # file:line of the pair
    label: str  # CHOSEN or REJECTED
    unit: int  # the same for all sequences of one prompt
    prompt: Prompt
    response: str
    tokens: list[int]  # of prompt and response, as the policy's template has them, up to the token that closes the turn
    prompt_tokens: int


@dataclass(frozen=True)
class Selection:
    """The sequences of figures 1 and 2. `sequences` begins with figure 1's: chosen, rejected, chosen, ... of N pairs."""

    sequences: list[LabelledSequence]
    compared: int  # how many of them are figure 1's, 2 N
    first: Tensor  # [M] figure 2's pairs, places in `sequences`
    second: Tensor  # [M]
    disjoint: bool  # no sequence and no prompt is in two of these pairs
    left_out: int  # pairs that were drawn, and are longer than the limit or have equal replies

    @property
    def units(self) -> Tensor:
        """The prompt of each sequence. [n]."""
        return torch.tensor([s.unit for s in self.sequences])

    def rows(self, rewards: Tensor) -> list[dict[str, Any]]:
        """A row per sequence for `sequences.csv`: no text, enough to find it again."""
        return [
            {
                "sequence": i, "row": s.row, "where": s.where.rpartition("/")[2], "label": s.label, "prompt": s.unit,
                "tokens": len(s.tokens), "prompt_tokens": s.prompt_tokens, "figure1": i < self.compared,
                "reward": rewards[i].item(),
            }
            for i, s in enumerate(self.sequences)
        ]  # fmt: skip


def select(pairs: list[Pair], chat: ChatFormat, limit: int, seed: int, config: AnalysisConfig) -> Selection:
    """Draw the sequences, in an order of the pairs that `seed` fixes.

    Figure 1: both replies of the first N pairs. Figure 2: if 2 M different prompts turn up, one reply, picked by a coin, to
    each of the first 2 M of them, two neighbours a pair; else M pairs of figure 1's sequences, any two of different prompts.

    Args:
        chat: the policy's.
        limit: tokens of a sequence; a pair with a longer one is passed over.

    Raises:
        UserError: fewer than two different prompts are left.
    """
    order = random.Random(draw_seed(Stream.ANALYSIS_PAIRS, seed)).sample(range(len(pairs)), len(pairs))
    kept: list[tuple[LabelledSequence, LabelledSequence]] = []
    units: dict[str, int] = {}
    firsts: dict[int, int] = {}  # prompt -> place in `kept` of its first pair
    left_out = 0
    for row in order:
        if len(kept) >= config.sequences and len(firsts) >= 2 * config.pairs:
            break
        unit = units.setdefault(json.dumps(pairs[row].prompt), len(units))
        if pairs[row].chosen == pairs[row].rejected or _prompt_fills(pairs[row], chat, limit):
            left_out += 1
            continue
        both = _both(pairs[row], row, unit, chat)
        if max(len(s.tokens) for s in both) > limit:
            left_out += 1
            continue
        firsts.setdefault(unit, len(kept))
        kept.append(both)
    compared = [s for both in kept[: config.sequences] for s in both]
    if len({s.unit for s in compared}) < 2:
        raise UserError(
            f"{len(kept)} of {len(pairs)} labelled pairs are of at most {limit} tokens (reward.max_tokens, and what the policy "
            "reads), and have different replies; pairs of two different prompts are needed: raise it, or give more pairs"
        )
    if len(firsts) < 2 * config.pairs:
        first, second = _couples([s.unit for s in compared], config.pairs, seed)
        return Selection(compared, len(compared), first, second, disjoint=False, left_out=left_out)
    coin = random.Random(draw_seed(Stream.ANALYSIS_SIDES, seed))
    places, sequences = [], compared.copy()
    for i in list(firsts.values())[: 2 * config.pairs]:
        side = coin.randrange(2)
        if i < config.sequences:
            places.append(2 * i + side)
        else:
            places.append(len(sequences))
            sequences.append(kept[i][side])
    drawn = torch.tensor(places).view(-1, 2)
    return Selection(sequences, len(compared), drawn[:, 0], drawn[:, 1], disjoint=True, left_out=left_out)


def _prompt_fills(pair: Pair, chat: ChatFormat, limit: int) -> bool:
    """Whether the prompt alone leaves no token for a reply. Of a very long one the beginning says it: a reply is put through
    the tokenizer with its prompt, several times over, and a megabyte takes a second each time."""
    beginning = chat.prompt_text(pair.prompt)[: BEGINNING * limit]
    if len(beginning) == BEGINNING * limit and len(chat.tokenizer(beginning).input_ids) > 2 * limit:
        return True
    return len(chat.prompt_ids(pair.prompt)) >= limit


def _both(pair: Pair, row: int, unit: int, chat: ChatFormat) -> tuple[LabelledSequence, LabelledSequence]:
    head = chat.prompt_ids(pair.prompt)

    def one(label: str, reply: str) -> LabelledSequence:
        tokens = head + chat.response_ids(pair.prompt, reply)
        return LabelledSequence(row, pair.where, label, unit, pair.prompt, reply, tokens, len(head))

    return one(CHOSEN, pair.chosen), one(REJECTED, pair.rejected)


def _couples(units: Iterable[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` different pairs of sequences of different units, or as many as there are. Two [M]."""
    unit = torch.tensor(list(units))
    possible = (unit[:, None] != unit[None, :]).triu().nonzero()
    order = torch.randperm(
        len(possible), generator=torch.Generator().manual_seed(draw_seed(Stream.ANALYSIS_COUPLES, seed))
    )
    drawn = possible[order[:count]]
    return drawn[:, 0], drawn[:, 1]
