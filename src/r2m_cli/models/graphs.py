"""Capturing work on a CUDA device as a graph, which is replayed without the cost of launching each of its kernels."""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch


class CannotCapture(Exception):
    """A step that waits for the device, or does something else that no graph can hold."""


class Capture(Protocol):
    """What turns a step, a function that changes tensors in place, into something that repeats it."""

    def warm_up(self, step: Callable[[], None]) -> None:
        """Run the step once, as it must have been before it is recorded. Raises CannotCapture; the step may have run in part."""
        ...

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record the step without running it; returns a function that replays it on the same tensors. Raises CannotCapture."""
        ...


class CudaGraphs:
    """CUDA graphs that share a memory pool: they never run at the same time, and leave nothing in it that is read later."""

    def __init__(self) -> None:
        self._stream = _stream(torch.cuda.current_device())
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Callable[[], None]) -> None:
        """As in `Capture`. A step that waits for the device is found out here, where it does no harm."""
        before, current = torch.cuda.get_sync_debug_mode(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._stream):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotCapture(_first_line(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)
            current.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """As in `Capture`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads (NCCL's watchdog) may do what this one may not.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture leaves its own behind
            raise CannotCapture(_first_line(error)) from error
        return graph.replay


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for every warm-up and capture: libraries make their handles and workspaces per stream, on first use."""
    return torch.cuda.Stream(device)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
