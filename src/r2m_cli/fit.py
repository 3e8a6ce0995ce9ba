"""Supervised fitting on one rank or many: what `r2m sft` and `r2m reward` share."""

import random
from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError
from r2m_cli.maths.schedule import learning_rate
from r2m_cli.schema import FitConfig
from r2m_cli.seeds import Stream, draw_seed


def fit(
    engine: Engine,
    rows: Sequence[object],
    loss_of: Callable[[Sequence[object]], Tensor],
    config: FitConfig,
    stream: Stream,
    seed: int,
    what: str,
    micro_rows: int,
) -> float:
    """Minimise the mean loss over the rows with AdamW; gives the mean loss of the last epoch.

    Args:
        loss_of: rows -> their losses [B], through the engine.
        stream, seed: of the order of the rows.
        what: named in the progress lines.
        micro_rows: rows per forward and backward; gradients are accumulated over the rest of a batch.

    Raises:
        UserError: a loss that is not finite, or a batch that cannot be split over the ranks.
    """  # fmt: skip
    ranks = comm.world_size()
    size = min(config.batch_size, len(rows)) // ranks
    if size < 1:
        raise UserError(
            f"{what}: batches of {min(config.batch_size, len(rows))} rows cannot be split over {ranks} ranks"
        )
    updates = len(rows) // (size * ranks)
    total, step = updates * config.epochs, 0
    begun = shown = monotonic()
    mean = 0.0
    for epoch in range(config.epochs):
        order = list(range(len(rows)))
        random.Random(draw_seed(stream, seed, epoch)).shuffle(order)
        losses: list[Tensor] = []
        for update in range(updates):
            first = (update * ranks + comm.rank()) * size
            mine = order[first : first + size]
            for start in range(0, size, micro_rows):
                loss = loss_of([rows[i] for i in mine[start : start + micro_rows]])
                engine.backward(loss.sum() / size)
                losses.append(loss.detach())
            if comm.max_over_ranks(float(not losses[-1].isfinite().all())):
                raise UserError(f"{what}: the loss is not a finite number at update {step + 1}; lower its fit.lr")
            try:
                engine.step(learning_rate(step, total, config.lr, total // 20, "linear"))
            except FloatingPointError as error:
                raise UserError(f"{what}: {error} at update {step + 1}; lower its fit.lr") from error
            step += 1
            if comm.is_main() and monotonic() - shown > 10:
                shown = monotonic()
                left = (monotonic() - begun) / step * (total - step)
                loss_now = losses[-1].mean().item()
                print(f"r2m: {what}: update {step} of {total}, loss {loss_now:.3f}, {left:.0f} s left", flush=True)
        every = comm.gather(torch.cat(losses).mean().item())  # the ranks have equally many rows
        mean = sum(every) / len(every)
    return mean
