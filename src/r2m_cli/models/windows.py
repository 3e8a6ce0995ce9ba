"""Temporarily narrow attention windows, so that their effect shows on a short text."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention")  # transformers' names for them
NARROW = 4  # tokens


@contextmanager
def narrowed(model: Any) -> Iterator[None]:
    """Every sliding window and attention chunk of a transformers model is NARROW tokens wide inside this block.

    A window may be thousands of tokens wide, and shorter texts do not show its effect. Some architectures apply it in the
    mask, some in the attention function: both read these numbers at every call. A window as long as the model's context has
    no effect and is not changed.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    owners = {id(o): o for m in model.modules() for o in (m, getattr(m, "config", None)) if o is not None}
    owners[id(model.config.get_text_config())] = model.config.get_text_config()
    found = [(vars(owner), name) for owner in owners.values() for name in WINDOWS]
    before = [(values, name, values[name]) for values, name in found if _is_window(values.get(name), context)]
    try:
        for values, name, _ in before:
            values[name] = NARROW
        yield
    finally:
        for values, name, width in before:
            values[name] = width


def _is_window(value: object, context: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and NARROW < value < context
