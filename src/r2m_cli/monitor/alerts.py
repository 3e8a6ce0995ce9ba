"""What goes wrong most often in RLHF, watched at every step and said once."""

from collections.abc import Callable, Mapping

from r2m_cli.text import number

Values = Mapping[str, float]

# name of the metric -> (when to warn, what to say; {value} is the metric's, {number} as a text)
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "completions/clipped_ratio": (
        lambda share: share > 0.9,
        "{value:.0%} of the responses hit rollout.max_new_tokens without an end token: the reward judges fragments. Raise "
        "it, or set ppo.eos_penalty",
    ),
    "frac_reward_zero_std": (
        lambda share: share >= 1,
        "the rewards of every group are all equal: nothing can be learnt from them. Look at samples.jsonl; raise "
        "rollout.temperature or ppo.group_size, or check the reward model with `r2m evaluate`",
    ),
    "frac_reward_missing": (
        lambda share: share > 0,
        "{value:.1%} of the rewards are not finite numbers; they are masked (advantage 0). Check the reward model, or try "
        "engine.dtype=fp32",
    ),
    "reward_model/cut_ratio": (
        lambda share: share > 0,
        "{value:.1%} of the conversations are longer than the reward model reads and lose their beginning: raise "
        "reward.max_tokens if that is the limit (a note at the start says which is), or lower rollout.max_prompt_tokens or "
        "rollout.max_new_tokens",
    ),
    "ratio_mean": (
        lambda ratio: ratio > 10,
        "the importance ratio is {number} on average (1 is no change): the policy moves so far within a step that the clipped "
        "loss has no bound where advantages are negative. Lower ppo.lr or ppo.epochs, set ppo.dual_clip=3, or take "
        "ppo.ratio=sequence_mean or token, which do not grow with the response's length",
    ),
    "kl": (
        lambda nats: nats < -1 or nats > 100 or nats != nats,
        "KL to the reference is {number} nats per response. It is estimated by k1, so a little below 0 is noise; far "
        "below means that sampling and scoring disagree; far above, that the policy has left the reference: raise "
        "ppo.beta or lower ppo.lr",
    ),
}


class Watch:
    """Gives each warning once in its life."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, step: int, values: Values) -> list[str]:
        """The warnings that this step's metrics call for and that were not given yet."""
        found = []
        for name, (wrong, text) in RULES.items():
            if name in values and name not in self._said and wrong(values[name]):
                self._said.add(name)
                found.append(f"step {step}: " + text.format(value=values[name], number=number(values[name], 3)))
        return found
