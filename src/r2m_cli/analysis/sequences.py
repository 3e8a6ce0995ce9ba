"""Selection of the labelled sequences and of the pairs to compare: it depends only on data and seed, and is recorded."""

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
BEGINNING = 32  # characters per allowed token: so much of a prompt is tokenized to see whether it is too long


@dataclass(frozen=True)
class LabelledSequence:
    """A prompt with one of the two replies of a labelled pair."""

    row: int  # index of its pair among the labelled pairs, from 0
    where: str  # file:line of the pair
    label: str  # CHOSEN or REJECTED
    unit: int  # the same for all sequences of one prompt
    prompt: Prompt
    response: str
    tokens: list[int]  # of prompt and response in the policy's template, up to the token that closes the turn
    prompt_tokens: int


@dataclass(frozen=True)
class Selection:
    """The sequences of figures 1 and 2. `sequences` begins with those of figure 1: chosen, rejected, chosen, ... of N pairs."""

    sequences: list[LabelledSequence]
    compared: int  # how many of them are figure 1's, 2 N
    first: Tensor  # [M] figure 2's pairs, indices in `sequences`
    second: Tensor  # [M]
    disjoint: bool  # no sequence and no prompt occurs in two of these pairs
    left_out: int  # number of drawn pairs that are longer than the limit or have equal replies

    @property
    def units(self) -> Tensor:
        """The prompt of each sequence. [n]."""
        return torch.tensor([s.unit for s in self.sequences])

    def rows(self, rewards: Tensor) -> list[dict[str, Any]]:
        """One row per sequence for `sequences.csv`: without the text, but enough to find it again."""
        return [
            {
                "sequence": i, "row": s.row, "where": s.where.rpartition("/")[2], "label": s.label, "prompt": s.unit,
                "tokens": len(s.tokens), "prompt_tokens": s.prompt_tokens, "figure1": i < self.compared,
                "reward": rewards[i].item(),
            }
            for i, s in enumerate(self.sequences)
        ]  # fmt: skip


def select(pairs: list[Pair], chat: ChatFormat, limit: int, seed: int, config: AnalysisConfig) -> Selection:
    """Draw the sequences from the pairs, which are shuffled by `seed`.

    Figure 1: both replies of the first N pairs. Figure 2: if there are 2 M different prompts, one randomly picked reply to each
    of the first 2 M, adjacent ones forming a pair; otherwise M pairs of figure 1's sequences, each of two different prompts.

    Args:
        chat: the policy's format.
        limit: tokens of a sequence; a pair with a longer one is skipped.

    Raises:
        UserError: fewer than two different prompts are left.
    """
    order = random.Random(draw_seed(Stream.ANALYSIS_PAIRS, seed)).sample(range(len(pairs)), len(pairs))
    kept: list[tuple[LabelledSequence, LabelledSequence]] = []
    units: dict[str, int] = {}
    firsts: dict[int, int] = {}  # prompt -> index in `kept` of its first pair
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
            f"only {len(kept)} of {len(pairs)} labelled pairs have at most {limit} tokens (reward.max_tokens, or the policy's "
            "limit) and different replies; pairs of two different prompts are needed: raise the limit, or give more pairs"
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
    """Whether the prompt alone leaves no token for a reply. For a very long prompt, only its beginning is tokenized: tokenizing
    a megabyte takes a second, and a reply is tokenized together with its prompt several times."""
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
    """`count` different pairs of sequences of different units, or all if there are fewer. Two [M]."""
    unit = torch.tensor(list(units))
    possible = (unit[:, None] != unit[None, :]).triu().nonzero()
    order = torch.randperm(
        len(possible), generator=torch.Generator().manual_seed(draw_seed(Stream.ANALYSIS_COUPLES, seed))
    )
    drawn = possible[order[:count]]
    return drawn[:, 0], drawn[:, 1]
