"""r2m: train a language model against a reward model that reads the policy's hidden states.

From Python each word of the command is a function: `r2m_cli.train(["feedback=r2m_safe", "train.steps=20"])`; see
docs/python.md. Importing this package is quick: torch and Hydra come with the first call.
"""

from typing import TYPE_CHECKING, Any

from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from r2m_cli.cli.python import Analysis, Evaluation, Model, Run, analyze, evaluate, report, reward, sft, train

__version__ = "0.1.0"
__all__ = [
    "Analysis", "Evaluation", "Model", "Run", "UserError", "analyze", "evaluate", "report", "reward", "sft", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("r2m_cli.cli.python"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
