"""What the adapter reads: the policy's states, or what an ablation puts in their place."""

import torch
from torch import Tensor

from r2m_cli.seeds import mix

NOISE = 6  # stream of random numbers
ANNOTATED, FRESH, LABELLED = range(3)  # looks at the same sequences


def feedback_states(
    kind: str, hidden: Tensor, mask: Tensor, seeds: list[int], block: int, phase: int
) -> tuple[Tensor, Tensor]:
    """The states and mask that the adapter gets under `feedback.kind`.

    Args:
        hidden, mask: [B, S, D_p] and [B, S], the policy's own.
        seeds: B, one per sequence.
        block: `shuffled` moves states among this many neighbouring sequences, a group or a pair, so that neither
            micro-batches nor ranks change what is read.
        phase: ANNOTATED, FRESH or LABELLED; noise is drawn anew for each look.
    """
    if kind == "noise":
        return noise_like(hidden, mask, [mix(seed, NOISE, phase) for seed in seeds]), mask
    if kind == "shuffled":
        order = neighbours(len(hidden), block).to(hidden.device)
        return hidden[order], mask[order]
    return hidden, mask


def noise_like(hidden: Tensor, mask: Tensor, seeds: list[int]) -> Tensor:
    """Gaussian noise with the mean and variance that each sequence's valid states have over positions and features."""
    count = mask.sum(dim=1) * hidden.shape[2]  # [B]
    states = torch.where(mask[:, :, None], hidden.float(), 0.0)
    mean = states.sum(dim=(1, 2)) / count
    centred = torch.where(mask[:, :, None], states - mean[:, None, None], 0.0)
    std = (centred.square().sum(dim=(1, 2)) / count).sqrt()
    noise = torch.zeros_like(states)
    for row, (seed, length) in enumerate(zip(seeds, mask.sum(dim=1).tolist())):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(length, hidden.shape[2], generator=generator)
        noise[row, :length] = mean[row] + std[row] * drawn.to(hidden.device)
    return noise.to(hidden.dtype)


def neighbours(rows: int, block: int) -> Tensor:
    """For every row the next one of its block, the first for the last; a last block may be shorter. [rows] long."""
    order = torch.arange(rows)
    start = order // block * block
    size = (rows - start).clamp_max(block)
    return start + (order - start + 1) % size
