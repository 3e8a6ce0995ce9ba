"""What the adapter reads: the policy's states, or what an ablation puts in their place."""

from typing import NamedTuple

import torch
from torch import Tensor

from r2m_cli.seeds import mix

NOISE = 6  # stream of random numbers
ANNOTATED, FRESH, LABELLED = range(3)  # looks at the same sequences


class States(NamedTuple):
    """The policy's last-layer states of B sequences. One state may belong to several of them: a prompt's, to its group."""

    hidden: Tensor  # [T, D_p]
    readable: Tensor  # [B, T] true where the state is one of the sequence's


def feedback_states(kind: str, states: States, seeds: list[int], block: int, phase: int) -> States:
    """The states that the adapter gets under `feedback.kind`.

    Args:
        states: the policy's own.
        seeds: B, one per sequence.
        block: `shuffled` moves states among this many neighbouring sequences, a group or a pair, so that neither
            micro-batches nor ranks change what is read.
        phase: ANNOTATED, FRESH or LABELLED; noise is drawn anew for each look.
    """
    if kind == "noise":
        return noise_like(states, [mix(seed, NOISE, phase) for seed in seeds])
    if kind == "shuffled":
        order = neighbours(len(seeds), block).to(states.readable.device)
        return States(states.hidden, states.readable[order])
    return states


def noise_like(states: States, seeds: list[int]) -> States:
    """Gaussian noise with the mean and variance that each sequence's states have over positions and features.

    Every sequence has noise of its own, where those of a group have the states of their prompt in common.
    """
    rows = []
    for seed, readable in zip(seeds, states.readable):
        own = states.hidden[readable].float()
        drawn = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(own.device)
        rows.append(own.mean() + own.std(correction=0) * drawn)
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    readable = owner[None] == torch.arange(len(rows))[:, None]
    return States(torch.cat(rows).to(states.hidden.dtype), readable.to(states.hidden.device))


def neighbours(rows: int, block: int) -> Tensor:
    """For every row the next one of its block, the first for the last; a last block may be shorter. [rows] long."""
    order = torch.arange(rows)
    start = order // block * block
    size = (rows - start).clamp_max(block)
    return start + (order - start + 1) % size
