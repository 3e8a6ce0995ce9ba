"""Distribute groups over forwards and ranks, by their tokens rather than their number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from r2m_cli.batch import Rollout
from r2m_cli.conversation import Prompt
from r2m_cli.distributed import comm
from r2m_cli.models.sequences import Sequences

TENSORS = ("tokens", "prompt_lengths", "response_lengths")


@dataclass(frozen=True)
class Pack:
    """The groups of one forward: a micro-batch. Old and new log-probabilities come from the same packs."""

    groups: Tensor  # [G] indices among the rank's groups
    rows: Tensor  # [b] indices of their sequences among the rank's; a group's K are adjacent
    sequences: Sequences


def shard(prompts: list[Prompt]) -> tuple[list[Prompt], range]:
    """This rank's equal part of the prompts, and their indices."""
    size = len(prompts) // comm.world_size()
    numbers = range(comm.rank() * size, (comm.rank() + 1) * size)
    return [prompts[i] for i in numbers], numbers


def pack(rollout: Rollout, budget: int, mini_batches: int = 1) -> list[list[Pack]]:
    """The packs of each mini-batch. Collective: every rank gets the same number of forwards.

    Args:
        budget: tokens per pack, prompts counted once; a single group may have more.
    """
    size = len(rollout.prompts) // mini_batches
    tokens = group_tokens(rollout)
    # feedback=shuffled moves states between neighbours: single responses stay in pairs.
    unit = 2 if rollout.group_size == 1 else 1
    batches = []
    for start in range(0, size * mini_batches, size):
        units = [list(range(i, min(i + unit, start + size))) for i in range(start, start + size, unit)]
        loads = [sum(tokens[group] for group in groups) for groups in units]
        count = int(comm.max_over_ranks(float(packs_needed(loads, budget))))
        bins = spread(loads, count)
        batches.append([_pack(rollout, [group for i in bin_ for group in units[i]]) for bin_ in bins])
    return batches


def balance(rollout: Rollout, together: int = 1) -> Rollout:
    """Exchange groups between ranks to balance their tokens; each rank keeps its number of groups. Returns this rank's. Collective.

    Args:
        together: this many adjacent groups move together: 2 if their single greedy responses swap states, as in ReMax
            with feedback=shuffled. If a rank's number of groups is not a multiple of this, nothing is exchanged.
    """
    if comm.world_size() == 1 or len(rollout.prompts) % together:
        return rollout
    every = comm.gather(replace(rollout, **{name: getattr(rollout, name).cpu() for name in TENSORS}))
    size, k = len(rollout.prompts), rollout.group_size
    tokens = [load for part in every for load in group_tokens(part)]
    loads = [sum(tokens[i : i + together]) for i in range(0, len(tokens), together)]
    mine = spread(loads, len(every), size // together)[comm.rank()]
    groups = [divmod(i * together + j, size) for i in mine for j in range(together)]  # (rank, group on that rank)
    rows = [(rank, group * k + j) for rank, group in groups for j in range(k)]
    width = max(int((part.prompt_lengths + part.response_lengths).max()) for part in every)
    tensors = {
        "tokens": torch.stack([F.pad(t, (0, width - len(t))) for t in (every[r].tokens[i] for r, i in rows)]),
        "prompt_lengths": torch.stack([every[r].prompt_lengths[i] for r, i in rows]),
        "response_lengths": torch.stack([every[r].response_lengths[i] for r, i in rows]),
    }
    return Rollout(
        prompts=[every[r].prompts[g] for r, g in groups],
        group_ids=[every[r].group_ids[g] for r, g in groups],
        responses=[every[r].responses[i] for r, i in rows],
        finished=[every[r].finished[i] for r, i in rows],
        seeds=[every[r].seeds[i] for r, i in rows],
        sampler_logp=None if rollout.sampler_logp is None else [(every[r].sampler_logp or [])[i] for r, i in rows],
        group_size=k,
        **{name: tensor.to(rollout.tokens.device) for name, tensor in tensors.items()},
    )


def _pack(rollout: Rollout, groups: list[int]) -> Pack:
    device = rollout.tokens.device
    chosen = torch.tensor(groups, device=device)
    rows = (chosen[:, None] * rollout.group_size + torch.arange(rollout.group_size, device=device)).flatten()
    lengths = rollout.prompt_lengths[rows], rollout.response_lengths[rows]
    return Pack(chosen, rows, Sequences(rollout.tokens[rows], *lengths, rollout.group_size))


def group_tokens(rollout: Rollout) -> list[int]:
    """Tokens of each group, its prompt counted once. [n]."""
    responses = rollout.response_lengths.view(-1, rollout.group_size).sum(dim=1)
    return (rollout.prompt_lengths[:: rollout.group_size] + responses).tolist()  # type: ignore[no-any-return]


def packs_needed(loads: Sequence[int], budget: int) -> int:
    """The smallest number of packs for which `spread` exceeds `budget` tokens in no pack, except for single loads."""
    limit = max(budget, *loads)
    count = max(1, -(-sum(loads) // limit))
    while max(sum(loads[i] for i in bin_) for bin_ in spread(loads, count)) > limit:
        count += 1
    return count


def spread(loads: Sequence[int], bins: int, size: int | None = None) -> list[list[int]]:
    """Indices of the loads in `bins` lists with about equal sums: the largest load first, each into the emptiest list.

    Args:
        bins: at most the number of loads, so that no list stays empty.
        size: the largest number of loads in a list.
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    sums = [0] * bins
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        open_ = [b for b in range(bins) if size is None or len(found[b]) < size]
        emptiest = min(open_, key=lambda b: (sums[b], len(found[b])))
        found[emptiest].append(i)
        sums[emptiest] += loads[i]
    return [sorted(bin_) for bin_ in found]


def rows_per_forward(budget: int, lengths: Sequence[int]) -> int:
    """Number of rows that any forward of at most `budget` tokens can hold; for sequences without groups."""
    return max(1, budget // max(lengths))


def columns(packs: Sequence[Pack], values: Sequence[Tensor], width: int | None = None) -> Tensor:
    """The packs' row-wise results as one tensor in the rank's order; tables [b, R'] are padded to `width`."""
    if width is not None:
        values = [F.pad(v, (0, width - v.shape[1])) for v in values]
    return torch.cat(list(values))[torch.cat([pack.rows for pack in packs]).argsort()]
