"""Warnings about the most common problems in RLHF, checked at every step; each is given once."""

from collections.abc import Callable, Mapping

from r2m_cli.text import number

Values = Mapping[str, float]

# name of the metric -> (when to warn, message; {value} is the metric's value, {number} the same as a string)
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "completions/clipped_ratio": (
        lambda share: share > 0.9,
        "{value:.0%} of the responses hit rollout.max_new_tokens without an end token: the reward judges fragments. Raise "
        "it, or set ppo.eos_penalty",
    ),
    "frac_reward_zero_std": (
        lambda share: share >= 1,
        "all rewards within every group are equal: nothing can be learned from them. Look at samples.jsonl; raise "
        "rollout.temperature or ppo.group_size, or check the reward model with `r2m evaluate`",
    ),
    "frac_reward_missing": (
        lambda share: share > 0,
        "{value:.1%} of the rewards are not finite numbers; they are masked (advantage 0). Check the reward model, or try "
        "engine.dtype=fp32",
    ),
    "reward_model/cut_ratio": (
        lambda share: share > 0,
        "{value:.1%} of the conversations are longer than the reward model's limit and lose their beginning: raise "
        "reward.max_tokens if that is the limit (a note at the start says what the limit is), or lower rollout.max_prompt_tokens or "
        "rollout.max_new_tokens",
    ),
    "rollout/logp_gap": (
        lambda nats: nats > 0.2,
        "vLLM's log-probabilities lie {number} nats per token from the trainer's: more than rounding explains, so vLLM computes "
        "another policy than the one that is trained. Use rollout.engine=native, or try engine.dtype=fp32",
    ),
    "ratio_mean": (
        lambda ratio: ratio > 10,
        "the importance ratio is {number} on average (1 means no change): the policy changes so much within a step that the "
        "clipped loss has no bound for negative advantages. Lower ppo.lr or ppo.epochs, set ppo.dual_clip=3, or use "
        "ppo.ratio=sequence_mean or token, which do not grow with the response's length",
    ),
    "kl": (
        lambda nats: nats < -1 or nats > 100 or nats != nats,
        "KL to the reference is {number} nats per response. It is estimated with k1, so slightly below 0 is noise. Far "
        "below 0, sampling and scoring disagree. Far above 0, the policy has moved far from the reference: raise "
        "ppo.beta or lower ppo.lr",
    ),
}


class Watch:
    """Returns each warning only once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, step: int, values: Values) -> list[str]:
        """The warnings for this step's metrics that were not given before."""
        found = []
        for name, (wrong, text) in RULES.items():
            if name in values and name not in self._said and wrong(values[name]):
                self._said.add(name)
                found.append(f"step {step}: " + text.format(value=values[name], number=number(values[name], 3)))
        return found
