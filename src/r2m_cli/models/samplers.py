"""The interface between the rollout and what writes the responses: r2m's own loop here, vLLM in `vllm_sampler.py`."""

from typing import NamedTuple, Protocol

from r2m_cli.config.schema import RolloutConfig
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import Engine
from r2m_cli.models.generate import sample, uniforms_of


class Drawn(NamedTuple):
    """B = n * K responses; a group's K are adjacent."""

    tokens: list[list[int]]  # B, the end token included where there is one
    logp: (
        list[list[float]] | None
    )  # each token's log-probability as the sampler saw it; None: the trainer's own numbers


class Sampler(Protocol):
    """Draws responses from softmax(logits / temperature), without top-k or top-p; temperature 0 takes the likeliest token."""

    def __call__(
        self, policy: Engine, chat: ChatFormat, prompts: list[list[int]], seeds: list[int], config: RolloutConfig
    ) -> Drawn:
        """Draw from the policy as it is now. Collective: every rank draws.

        Args:
            chat: its end and padding tokens.
            prompts: n lists of token ids.
            seeds: B, one per response, which alone (with the prompt) decides what is drawn for it. K = B / n.
        """
        ...


def native(
    policy: Engine, chat: ChatFormat, prompts: list[list[int]], seeds: list[int], config: RolloutConfig
) -> Drawn:
    """r2m's own token loop on the policy itself. See `Sampler`."""
    group_size = len(seeds) // len(prompts)
    uniforms = uniforms_of(seeds, config.max_new_tokens)
    groups = max(1, (config.batch_size or len(seeds)) // group_size)
    drawn: list[list[int]] = []
    with policy.whole() as module:
        for start in range(0, len(prompts), groups):
            part = prompts[start : start + groups]
            draws = uniforms[len(drawn) : len(drawn) + len(part) * group_size]
            drawn += sample(module, part, group_size, draws, config.temperature, chat.eos_ids, chat.pad_id)
    return Drawn(drawn, None)
