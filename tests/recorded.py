"""A CUDA graph's behaviour on the CPU: operations are recorded once and repeated on the same tensors, without their Python."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from r2m_cli.models.graphs import CannotCapture

HOST = ("_local_scalar_dense", "item", "nonzero", "equal", "masked_select")  # what waits for the device


class Recorder(TorchDispatchMode):
    """Runs operations and notes them, and what the tensors that they change in place held before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in HOST:
            raise CannotCapture(f"{func} waits for the device")
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result


class Recorded:
    """A `Capture` that does on the CPU what CUDA graphs do on a GPU."""

    def __init__(self) -> None:
        self.warm_ups = self.records = self.replays = 0

    def warm_up(self, step: Callable[[], None]) -> None:
        self.warm_ups += 1
        with Recorder():
            step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.records += 1
        with Recorder() as recorder:
            step()
        for tensor, held in reversed(recorder.before):  # a capture computes nothing
            tensor.copy_(held)
        return lambda: self._replay(recorder.calls)

    def _replay(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        self.replays += 1
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, result in calls:
            again = func(*tree_map(now, args), **tree_map(now, kwargs))
            old, new = (list(r) if isinstance(r, tuple | list) else [r] for r in (result, again))
            for before, after in zip(old, new):
                if isinstance(before, Tensor) and before is not after:
                    made[id(before)] = after
