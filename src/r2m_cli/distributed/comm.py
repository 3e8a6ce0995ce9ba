"""The few collective operations that the project needs; each is the identity in a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the rank that writes files and shows progress."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Element-wise sum over all ranks; the argument is not modified."""
    if not dist.is_initialized():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def max_over_ranks(value: float) -> float:
    """Largest value over all ranks."""
    return max(gather(value))


def gather(value: Any) -> list[Any]:
    """One picklable value per rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """The main rank's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


class MetricSums:
    """Metrics as (sum, count), so that a mean over ranks with unequal counts is the mean over the global batch.

    A sum stays on the device of its values until `means`: adding to it waits for nothing.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, float]] = {}

    def add(self, name: str, values: Tensor | float, count: float | None = None) -> None:
        """Add the sum of `values` to a metric; `count` defaults to their number."""
        tensor = torch.as_tensor(values, dtype=torch.float64).detach()
        total, seen = self._sums.get(name, (0.0, 0.0))
        number = float(tensor.numel()) if count is None else count
        self._sums[name] = (total + tensor.sum(), seen + number)

    def update(self, other: "MetricSums") -> None:
        """Add the metrics of another collection, replacing those of the same name."""
        self._sums |= other._sums

    def means(self) -> dict[str, float]:
        """Global mean of each metric for which any rank has values. Collective: every rank must have added the same names."""
        names = sorted(self._sums)
        if not names:
            return {}
        packed = torch.tensor([list(map(float, self._sums[name])) for name in names], dtype=torch.float64)
        packed = sum(gather(packed), torch.zeros_like(packed))
        return {name: float(total / count) for name, (total, count) in zip(names, packed) if count}
