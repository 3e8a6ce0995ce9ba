"""Your own reward without a fork: a Python function that scores texts, named by reward.function."""

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2m_cli.config.schema import RewardConfig
from r2m_cli.conversation import Prompt
from r2m_cli.errors import UserError

SHOWN = 60  # characters of a text in an error


class FunctionFailed(UserError):
    """The function raised an error, or returned something other than a list of numbers."""


@dataclass(frozen=True)
class RewardFunction:
    """The function named by reward.function, with its weight."""

    name: str  # module:name
    function: Callable[[list[list[dict[str, str]]], list[str]], Sequence[float]]
    weight: float

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """The weighted values, one per response; values that are not finite count as missing. [B] fp32.

        Raises:
            FunctionFailed: one line with the function, its error, the source line that raised it and the text it failed on.
        """
        try:
            values = self._ask(prompts, responses)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            at = traceback.extract_tb(error.__traceback__)[-1]
            about = self._about(prompts, responses)
            raise FunctionFailed(
                f"reward.function={self.name}: {said} ({Path(at.filename).name}:{at.lineno}) for {about}"
            ) from error
        return self.weight * torch.tensor(self._numbers(values, responses), dtype=torch.float32)

    def _ask(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        return self.function([[dict(message) for message in prompt] for prompt in prompts], list(responses))

    def _about(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> str:
        """The first text that fails when scored alone; all of them if none does."""
        for i in range(len(responses)):
            try:
                self._ask(prompts[i : i + 1], responses[i : i + 1])
            except Exception:
                return f"text {i + 1} of {len(responses)}, {responses[i][:SHOWN]!r}"
        return f"{len(responses)} texts at once, but for none of them alone"

    def _numbers(self, values: Any, responses: Sequence[str]) -> list[float]:
        if isinstance(values, str | bytes) or not (hasattr(values, "__len__") and hasattr(values, "__iter__")):
            raise FunctionFailed(
                f"reward.function={self.name}: returned {type(values).__name__}; return a list with one float per response"
            )
        if len(values) != len(responses):
            raise FunctionFailed(
                f"reward.function={self.name}: returned {len(values)} values for {len(responses)} responses; return one for "
                "each, in their order"
            )
        numbers = []
        for i, value in enumerate(values):
            if not hasattr(value, "__float__"):
                raise FunctionFailed(
                    f"reward.function={self.name}: returned {value!r:.{SHOWN}} for text {i + 1} of {len(responses)}, "
                    f"{responses[i][:SHOWN]!r}; return a float, nan for a missing one"
                )
            numbers.append(float(value))
        return numbers


def function_of(config: RewardConfig) -> RewardFunction | None:
    """The function named by reward.function, with its weight; None if it is not set. Raises UserError."""
    if config.function is None:
        return None
    weight = 1.0 if config.function_weight is None else config.function_weight
    return RewardFunction(config.function, load(config.function), weight)


def load(name: str) -> Callable[..., Any]:
    """Load `module:name` from a module in the working directory or an installed one. No other module is imported.

    Raises:
        UserError: no such module or function, or the module cannot be imported.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise UserError(f"reward.function={name}: name a module and a function in it, module:name")
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:  # the command `r2m` has its script's folder there instead
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"reward.function={name}: there is no module {error.name} in {os.getcwd()}, and none is installed; start r2m "
                "in its folder, or install it"
            ) from None
        raise UserError(f"reward.function={name}: importing {module_name} failed: {error}; install it") from error
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"reward.function={name}: importing {module_name} failed: {said}; correct the module"
        ) from error
    try:
        function = attrgetter(path)(module)
    except AttributeError:
        raise UserError(
            f"reward.function={name}: {module_name} ({getattr(module, '__file__', None)}) has no {path}; correct the name"
        ) from None
    if not callable(function):
        raise UserError(f"reward.function={name}: is a {type(function).__name__}; name a function")
    return function  # type: ignore[no-any-return]


def source_of(name: str) -> Path | None:
    """The file that holds the function; None if there is none, such as for a function typed into a notebook."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(load(name)))
    except TypeError:
        file = None
    return Path(file) if file is not None and Path(file).is_file() else None
