"""How many tokens a model can read, by its configuration."""

from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """Number of tokens that a model can read, if its configuration has it.

    With longrope, only as many as it reads without switching its rotary factors: beyond that, the factors of every text
    depend on the longest text of the batch.
    """
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    steady = _steady_length(text)
    if positions is None or positions < 1:  # XLNet's is -1: any length
        return steady
    return positions if steady is None else min(positions, steady)


def why_no_longer(config: PretrainedConfig) -> str:
    """Why `context_length` is less than a model's number of positions, for messages; empty if it is not."""
    text = config.get_text_config()
    shorter = (context_length(config) or 0) < (getattr(text, "max_position_embeddings", None) or 0)
    return " (beyond that, longrope makes a text's results depend on the longest text of its batch)" if shorter else ""


def _steady_length(text: PretrainedConfig) -> int | None:
    ropes = getattr(text, "rope_parameters", None) or {}
    kinds = [
        ropes,
        *(rope for rope in ropes.values() if isinstance(rope, dict)),
    ]  # one for all layers, or one per layer type
    switches = [rope.get("original_max_position_embeddings") for rope in kinds if rope.get("rope_type") == "longrope"]
    return min((int(switch) for switch in switches if switch), default=None)
