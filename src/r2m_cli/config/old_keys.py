"""Keys of earlier versions: what each is called now, or why it is gone; and an earlier run's configuration in today's keys."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "feedback.states": "feedback.source",
    "feedback.reads": "feedback.features",
    "eval.preflight_pairs": "eval.reward_check_pairs",
    "policy.hidden_size": "policy.size", "policy.num_layers": "policy.size", "policy.num_heads": "policy.size",
    "reward.hidden_size": "reward.size", "reward.num_layers": "reward.size", "reward.num_heads": "reward.size",
    **{f"data.{world}.label_{what}": f"data.label_{what}" for world in ("world", "english") for what in ("bias", "temperature", "noise")},
}  # fmt: skip
GONE = {
    "data.world": "what the labellers do is data.label_bias, data.label_temperature and data.label_noise; the points of gold "
    "are constants",
    "data.english": "what the labellers do is data.label_bias, data.label_temperature and data.label_noise",
    "guard.stop_on": "guard.kl alone says it: null for never, or the nats that end the run",
    "feedback.scale": "the adapter's output has the size that it learns",
    "feedback.init_scale": "W_o begins as the adapter's other weights do",
    "feedback.judge_select": "the judge gets a random choice of the groups",
    "ppo.std_floor": "it is always 0.01",
    "ppo.critic.gamma": "later rewards are never discounted",
    "policy.fit.weight_decay": "it is always 0",
    "reward.fit.weight_decay": "it is always 0.01",
    "reward.fit.margin": "the loss is Bradley-Terry's without one",
    "eval.bootstrap": "an interval is always made of 1000 resamples",
    "analysis.tokens": "the states of a response's tokens are averaged",
    "judge.retries": "a failed request is tried four more times",
    "logger.name": "a run in wandb has the name of its run folder",
}

# What a key must have been for its run to be one of this version; a key of GONE that is not named here changed nothing that
# still matters once a run has its models.
REQUIRED: dict[str, Any] = {
    "feedback.scale": "free", "feedback.judge_select": "first", "ppo.std_floor": 1e-2, "ppo.critic.gamma": 1.0,
    "data.world.on_topic": 0.6, "data.world.key_word": 0.6, "data.world.order": 0.6, "data.world.opening": 0.3,
    "data.world.stop": 0.3, "data.world.polite": 0.2, "data.world.off_topic": -0.6, "data.world.repeat": -0.4,
    "data.world.extra_polite": -0.4, "data.world.filler": -0.15, "data.world.overlong": -0.2, "data.world.no_eos": -1.0,
    "data.world.max_on_topic": 4, "data.world.max_polite": 2, "data.world.soft_length": 11,
}  # fmt: skip
LABELLERS = {  # defaults of the keys, which are null now
    "gold": ("world", {"label_bias": 0.15, "label_temperature": 0.3, "label_noise": 0.0}),
    "english": ("english", {"label_bias": 0.4, "label_temperature": 0.3, "label_noise": 0.0}),
}


def what_became_of(key: str) -> str | None:
    """The error line for a key of an earlier version; None for any other key."""
    if key in RENAMED:
        as_text = " (WIDTHxLAYERSxHEADS, such as 64x2x4)" if RENAMED[key].endswith(".size") else ""
        return f"{key} is now called {RENAMED[key]}{as_text}"
    known = key if key in GONE else key.rpartition(".")[0]
    return f"{key} is no longer a key: {GONE[known]}" if known in GONE else None


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration, nested as in its config.yaml, in today's keys.

    A key that is gone is left out where the run had what is done today, and else left for the schema to refuse.
    """
    new = _copy(config)
    for old, name in RENAMED.items():
        section, _, key = old.partition(".")
        if key in _section(new, section) and not name.endswith(".size"):
            new[section][name.partition(".")[2]] = new[section].pop(key)
    for name in ("policy", "reward"):
        model = _section(new, name)
        if all(key in model for key in ("hidden_size", "num_layers", "num_heads")):
            model["size"] = "x".join(str(model.pop(key)) for key in ("hidden_size", "num_layers", "num_heads"))
    if _section(new, "guard").pop("stop_on", "kl") == "none":
        new["guard"]["kl"] = None
    data = _section(new, "data")
    for kind, (world, defaults) in LABELLERS.items():
        for key, default in defaults.items():
            value = _section(data, world).pop(key, default)
            if data.get("kind") == kind and value != default:
                data[key] = value
    for old in (*GONE, *REQUIRED):
        *parents, key = old.split(".")
        part = new
        for parent in parents:
            part = _section(part, parent)
        if old not in ("data.world", "data.english") and part.get(key) == REQUIRED.get(old, part.get(key)):
            part.pop(key, None)
    for world in ("world", "english"):
        if data.get(world) == {}:
            del data[world]
    return new


def _copy(config: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _copy(value) if isinstance(value, Mapping) else value for key, value in config.items()}


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the configuration; an empty one where there is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
