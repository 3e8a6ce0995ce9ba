"""A causal language model of transformers without its head, and the layers in it that can be checkpointed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def body(lm: Any) -> Any:
    """A causal language model of transformers without its head."""
    if lm.base_model is not lm:
        return lm.base_model
    return next(child for child in lm.children() if isinstance(child, PreTrainedModel))  # Llama 4's names no base


def checkpointed_layers(lm: Any) -> list[nn.Module]:
    """Turn on gradient checkpointing in a transformers model; returns the layers that support it."""
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return [m for m in lm.modules() if getattr(m, "gradient_checkpointing", False)]


@contextmanager
def checkpointing(layers: list[nn.Module]) -> Iterator[None]:
    """Put these layers into training mode while a gradient is needed: transformers checkpoints a layer only in training mode,
    and then drops its cache. Their submodules stay in evaluation mode, so dropout stays off: the first ratio must be 1."""
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
