"""Embeds labelled pairs with the frozen backbone, once, so that a head can be fitted on the embeddings."""

import torch
from torch import Tensor

from r2m_cli.console import Count
from r2m_cli.distributed import comm
from r2m_cli.fitting.unfinished import Part
from r2m_cli.models.reward_backbone import RewardBackbone
from r2m_cli.models.sequences import pad
from r2m_cli.monitor.stop import Stopped


@torch.no_grad()
def embedded(
    backbone: RewardBackbone, pairs: list[tuple[list[int], list[int]]], pad_id: int, step: int, kept: Part, what: str
) -> Tensor:
    """RTE of the chosen and of the rejected conversation. [len(pairs), 2, D_rm] fp32, on the CPU, the same on every rank.

    Every rank embeds its share. Embeddings of an earlier try are loaded from `kept`, and new ones are saved there.

    Args:
        pairs: token ids of the chosen and of the rejected conversation.
        step: pairs per forward.
        what: the name in the progress lines.

    Raises:
        Stopped: the user asked to stop; the embeddings so far are saved.
    """
    device = next(backbone.parameters()).device
    order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i])))
    mine = order[comm.rank() :: comm.world_size()]
    found = kept.load_rows()  # complete batches, from the first on
    done = saved = sum(map(len, found))
    count = Count(what, comm.is_main(), done)
    for start in range(0, len(order[:: comm.world_size()]), step):  # the same number of batches on every rank
        batch = mine[start : start + step]
        if batch and start >= done:
            tokens, lengths = pad([pairs[i][side] for i in batch for side in (0, 1)], pad_id)
            rte = backbone(tokens.to(device), lengths.to(device), group_size=2).float().cpu()
            found.append(rte.view(len(batch), 2, -1))
            count(start + len(batch), len(mine))
        stopping = kept.stopping()
        if kept.due() or stopping or start + step >= len(mine):
            saved += kept.save_rows(saved, found)
        if stopping:
            raise Stopped(start + len(batch))
    rows = [row for part in found for row in part]
    every = {i: row for rank in comm.gather(dict(zip(mine, rows))) for i, row in rank.items()}
    return torch.stack([every[i] for i in range(len(pairs))])
