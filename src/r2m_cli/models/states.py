"""The adapter's input: the policy's states, or what an ablation uses instead."""

from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from r2m_cli.config.registry import FEEDBACKS
from r2m_cli.seeds import Stream, draw_seed

ANNOTATED, FRESH, LABELLED = range(3)  # occasions on which sequences are read


class States(NamedTuple):
    """Per-token vectors of B sequences. A state may belong to several sequences: a prompt's belongs to its whole group."""

    hidden: Tensor  # [T, D_p] the policy's last-layer states, or the `Features` of them
    visible: Tensor  # [B, T] true where the state is one of the sequence's


class Features:
    """Per-token features for the adapter: a model's last-layer state, its input embedding, or both concatenated.

    A last-layer state encodes what the model expects next; it may no longer encode which token is at its position.
    """

    def __init__(self, model: Any, kind: str):
        """
        Args:
            model: a model of transformers.
            kind: feedback.features.
        """  # fmt: skip
        self.kind, self._embedded = kind, torch.empty(0)
        if kind != "states":
            model.get_input_embeddings().register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, embedded: Tensor) -> None:
        self._embedded = embedded.detach()

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [T, D], the states of the latest forward -> [T, width]. Embeddings are scaled to the rms of the states."""
        if self.kind == "states":
            return hidden.detach()
        embedded, self._embedded = self._embedded.flatten(0, -2), torch.empty(0)
        embedded = embedded * (rms(hidden.detach()) / rms(embedded).clamp_min(1e-12))
        return embedded if self.kind == "tokens" else torch.cat([hidden.detach(), embedded], dim=1)


def width(model: Any, kind: str) -> int:
    """Size of the `Features` of a transformers model."""
    sizes = {
        "states": int(model.config.get_text_config().hidden_size),
        "tokens": int(model.get_input_embeddings().embedding_dim),
    }
    return sizes.get(kind) or sum(sizes.values())


def rms(rows: Tensor) -> Tensor:
    """Root mean square. [B, D] -> [B, 1]."""
    return rows.square().mean(dim=1, keepdim=True).sqrt()


def feedback_states(kind: str, states: States, seeds: list[int], block: int, phase: int) -> States:
    """The states that the adapter reads under `feedback.kind`: the variant's function applied to the model's own states.

    Args:
        states: the model's own.
        seeds: B, one per sequence.
        block: a variant may move states only within blocks of this many adjacent sequences (a group or a pair). So neither
            micro-batches nor ranks change the result (except for an odd number of single responses, see `balance`).
        phase: ANNOTATED, FRESH or LABELLED; each has its own random draws.

    Raises ValueError unless there is one seed per sequence.
    """
    if len(seeds) != len(states.visible):
        raise ValueError(f"{len(seeds)} seeds for {len(states.visible)} sequences")
    variant = FEEDBACKS[kind].states
    if variant is None:
        return states
    made: States = resolve_name(variant)(states, [draw_seed(Stream.NOISE, seed, phase) for seed in seeds], block)
    return made


def own(states: States, seeds: list[int], block: int) -> States:
    """The model's own states: the published method.

    Every variant is a function with the same three arguments.

    Args:
        states: of B sequences.
        seeds: B, for random draws.
        block: sequences of a group.
    """
    return states


def noise_like(states: States, seeds: list[int], block: int) -> States:
    """Gaussian noise with the mean and variance that each sequence's states have over positions and features.

    Every sequence gets its own noise, even for the prompt's positions, whose states a group shares.
    """
    rows = []
    for seed, visible in zip(seeds, states.visible):
        values = states.hidden[visible].float()
        drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values.device)
        rows.append(values.mean() + values.std(correction=0) * drawn)
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    visible = owner[None] == torch.arange(len(rows))[:, None]
    return States(torch.cat(rows).to(states.hidden.dtype), visible.to(states.hidden.device))


def shuffled(states: States, seeds: list[int], block: int) -> States:
    """The states of the next response of the same group."""
    order = neighbours(len(seeds), block).to(states.visible.device)
    return States(states.hidden, states.visible[order])


def neighbours(rows: int, block: int) -> Tensor:
    """For every row, the next row of its block (for the last row the first); the last block may be shorter. [rows] long."""
    order = torch.arange(rows)
    start = order // block * block
    size = (rows - start).clamp_max(block)
    return start + (order - start + 1) % size
