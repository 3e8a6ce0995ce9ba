"""Labelled pairs for the light update: those of the reward model for warm-up and replay, and those judged during the run."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from r2m_cli.config.schema import FeedbackConfig
from r2m_cli.console import Count
from r2m_cli.conversation import Pair, Prompt
from r2m_cli.distributed import comm
from r2m_cli.judges.judge import Judge
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.models.actors import Actors
from r2m_cli.models.context import context_length
from r2m_cli.models.sequences import Sequences, pad
from r2m_cli.models.states import LABELLED, States
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.packing import rows_per_forward


@dataclass
class Labels:
    """The sources of real labels, and the labels collected so far in the run."""

    judge: Judge | None = None
    pairs: list[Pair] = field(default_factory=list)  # labelled pairs of the reward model, for warm-up and replay
    heldout: list[Pair] = field(
        default_factory=list
    )  # held-out labelled pairs; training uses them at most to choose a pass of the warm-up
    judged: list[Pair] = field(
        default_factory=list
    )  # pairs that the judge has labelled so far; every step may add some


def fits(actors: Actors, pair: Pair) -> bool:
    """Whether the policy can read the prompt with either reply completely; always true if its states are not needed."""
    limit = context_length(actors.policy.module.lm.config)
    if limit is None or not actors.reward.has_adapter:
        return True
    prompt = len(actors.format.prompt_ids(pair.prompt))
    replies = (actors.format.response_ids(pair.prompt, reply) for reply in (pair.chosen, pair.rejected))
    return prompt + max(map(len, replies)) <= limit


def pairs_per_forward(actors: Actors, pairs: Sequence[Pair], budget: int) -> int:
    """How many of the pairs the policy can read in one forward of `budget` tokens."""
    return rows_per_forward(budget, pair_tokens(actors, pairs))


def pair_tokens(actors: Actors, pairs: Sequence[Pair]) -> list[int]:
    """Number of policy tokens of each pair, the prompt counted once."""
    chat = actors.format
    return [
        len(chat.prompt_ids(p.prompt)) + sum(len(chat.response_ids(p.prompt, r)) for r in (p.chosen, p.rejected))
        for p in pairs
    ]


class EmbeddedPairs(NamedTuple):
    """Outputs for m pairs of the models that the light update does not change; each chosen reply comes before its rejected one."""

    rte: Tensor  # [2m, D_rm]
    states: States | None  # of the 2m replies; None if nothing reads them


def embed_pairs(actors: Actors, pairs: Sequence[Pair]) -> EmbeddedPairs:
    """Embed all replies in one batch: in separate batches, any effect of the batch could distinguish winners from losers."""
    prompts, replies = _replies(pairs)
    rte, own = actors.reward.embed(prompts, replies, actors.device)
    if not actors.reward.has_adapter:
        return EmbeddedPairs(rte, None)
    return EmbeddedPairs(rte, _policy_states(actors, prompts, replies) if own is None else own)


def live_rewards(actors: Actors, known: EmbeddedPairs, weight: float, seeds: list[int]) -> Tensor:
    """The live reward model's scores of pairs, with gradient to adapter and head. [m, 2].

    Args:
        weight: w(t).
        seeds: one per pair.
    """
    reward = actors.reward
    assert reward.feedback is not None
    if known.states is None:
        return reward.feedback(known.rte, None, weight).reward.view(-1, 2)  # type: ignore[no-any-return]
    rows = [draw_seed(Stream.SIDE_OF_PAIR, seed, side) for seed in seeds for side in (0, 1)]
    return reward.live_scores(known.rte, known.states, weight, rows, block=2, phase=LABELLED).reward.view(-1, 2)


def pair_rewards(
    actors: Actors, pairs: Sequence[Pair], weight: float, seeds: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Rewards of chosen and rejected replies: the initial model's on the text and, with feedback, `live_rewards`; both include
    reward.function.

    Args:
        pairs: only pairs that the policy can read, see `fits`.

    Returns:
        [m, 2] and, with feedback, [m, 2]; the chosen reply first.
    """
    known = embed_pairs(actors, pairs)
    frozen = actors.reward.frozen_scores(known.rte, *_replies(pairs), actors.device).view(-1, 2)
    live = None if actors.reward.feedback is None else live_rewards(actors, known, weight, seeds)
    added = actors.reward.function_scores(*_replies(pairs), actors.device)
    if added is not None:
        added = added.view(-1, 2)
        frozen, live = frozen + added, None if live is None else live + added
    return frozen, live


def _replies(pairs: Sequence[Pair]) -> tuple[list[Prompt], list[str]]:
    """Prompts and replies, two rows per pair."""
    prompts = [p.prompt for p in pairs for _ in (p.chosen, p.rejected)]
    return prompts, [reply for p in pairs for reply in (p.chosen, p.rejected)]


@torch.no_grad()
def _policy_states(actors: Actors, prompts: Sequence[Prompt], replies: Sequence[str]) -> States:
    """The policy's states of pairs of replies, or the reference's."""
    chat = actors.format
    prompt_ids = [chat.prompt_ids(p) for p in prompts]
    reply_ids = [chat.response_ids(p, r) for p, r in zip(prompts, replies)]
    tokens, lengths = pad([p + r for p, r in zip(prompt_ids, reply_ids)], chat.pad_id)
    prompt_lengths = torch.tensor([len(p) for p in prompt_ids])
    tokens, lengths, prompt_lengths = (t.to(actors.device) for t in (tokens, lengths, prompt_lengths))
    model = actors.reference if actors.feedback_source == "reference" else actors.policy
    assert model is not None
    output = model(Sequences(tokens, prompt_lengths, lengths - prompt_lengths, group_size=2), 1.0)
    return output.states  # type: ignore[no-any-return]


def learn_from_pairs(
    actors: Actors,
    pairs: Sequence[Pair],
    weight: float,
    seed: int,
    budget: int,
    known: Sequence[EmbeddedPairs] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the pairs' mean Bradley-Terry loss over all ranks to adapter and head; no optimiser step.

    Args:
        pairs: the same on every rank; each rank takes its share.
        budget: tokens per forward.
        known: the embedded pairs, if they have been read before; no forward is needed then.

    Returns:
        loss and "ordered right" (0 or 1) of this rank's pairs, each [pairs of this rank].
    """
    assert actors.reward.feedback is not None
    ranks = comm.world_size()
    mine, real = share(len(pairs))
    micro_rows = len(mine) if known else pairs_per_forward(actors, pairs, budget)
    losses, right = [], []
    for start in range(0, len(mine), micro_rows):
        part = mine[start : start + micro_rows]
        batch = (
            join([known[i] for i in part], actors.device) if known else embed_pairs(actors, [pairs[i] for i in part])
        )
        live = live_rewards(actors, batch, weight, [draw_seed(Stream.PAIR_OF_STEP, seed, i) for i in part])
        counts = torch.tensor(real[start : start + micro_rows], device=live.device)
        loss = torch.where(counts, bradley_terry(live[:, 0], live[:, 1]), 0.0)
        actors.reward.feedback.backward(loss.sum() * ranks / len(pairs))
        losses.append(loss.detach()[counts])
        right.append((live[:, 0] > live[:, 1]).float()[counts])
    return torch.cat(losses), torch.cat(right)


def share(count: int) -> tuple[list[int], list[bool]]:
    """This rank's equal part of `count` pairs. If a rank runs out of pairs it repeats the last one, marked False, because
    every rank must make the same collective calls."""
    size = -(-count // comm.world_size())
    mine = range(comm.rank() * size, (comm.rank() + 1) * size)
    return [min(i, count - 1) for i in mine], [i < count for i in mine]


def join(parts: Sequence[EmbeddedPairs], device: torch.device) -> EmbeddedPairs:
    """Separately embedded pairs as one batch."""
    rte = torch.cat([part.rte for part in parts]).to(device)
    states = [part.states for part in parts if part.states is not None]
    if not states:
        return EmbeddedPairs(rte, None)
    visible = torch.block_diag(*(s.visible for s in states)).bool()
    return EmbeddedPairs(rte, States(torch.cat([s.hidden for s in states]).to(device), visible.to(device)))


def replay_batch(labels: Labels, config: FeedbackConfig, seed: int, step: int) -> list[Pair]:
    """The pairs that step `step` replays, drawn without replacement from the reward model's pairs and from those judged so
    far; the same on every rank."""
    rng = random.Random(draw_seed(Stream.REPLAY, seed, step))
    wanted = ((labels.pairs, config.replay_pairs), (labels.judged, config.judge_replay))
    return [pair for pairs, count in wanted for pair in rng.sample(pairs, min(count, len(pairs)))]


def scored_seed(number: int) -> int:
    """The seed of pair `number` in a list that is scored: the same every time."""
    return draw_seed(Stream.SCORED_PAIR, 0, number)


@torch.no_grad()
def score_pairs(
    actors: Actors, pairs: Sequence[Pair], weight: float, budget: int, counted: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`pair_rewards` of any number of pairs, without a gradient; the same on every rank. -> [m, 2], [m, 2].

    Args:
        weight, budget: as in `learn_from_pairs`.
        counted: print progress now and then.
    """
    rows = pairs_per_forward(actors, pairs, budget)
    seeds = [scored_seed(i) for i in range(len(pairs))]
    count = Count("scoring labelled pairs", counted)
    parts = []
    for start in range(0, len(pairs), rows):
        part = slice(start, start + rows)
        parts.append(pair_rewards(actors, pairs[part], weight, seeds[part]))
        count(min(part.stop, len(pairs)), len(pairs))
    frozen = torch.cat([text for text, _ in parts])
    live = [rewards for _, rewards in parts if rewards is not None]
    return frozen, torch.cat(live) if live else None
