"""Between the tests' padded tables and the packed rows of the stages."""

import torch

from r2m_cli.models.sequences import Sequences
from r2m_cli.models.states import States
from r2m_cli.stages import packing


def packs(batch, groups=100, mini_batches=1):
    """Packs of so many neighbouring groups, whatever their tokens, for each mini-batch."""
    size = len(batch.prompts) // mini_batches
    return [
        [
            packing._pack(batch, list(range(i, min(i + groups, start + size))))
            for i in range(start, start + size, groups)
        ]
        for start in range(0, size * mini_batches, size)
    ]


def flat(batch, groups=100):
    """The packs of the whole batch."""
    return packs(batch, groups)[0]


def sequences(batch):
    """All of a rollout's sequences."""
    return Sequences(batch.tokens, batch.prompt_lengths, batch.response_lengths, batch.group_size)


def of_rows(hidden, mask):
    """States that no two sequences share, from a table. [B, S, D], [B, S] -> States of T = B * S."""
    own = torch.eye(len(mask), dtype=torch.bool)[:, :, None] & mask
    return States(hidden.flatten(0, 1), own.flatten(1))


def rows_of(states):
    """Each sequence's states in the order of its tokens. -> B tensors [S, D]."""
    return [states.hidden[visible] for visible in states.visible]
