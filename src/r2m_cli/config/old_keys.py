"""Keys of earlier versions: their new names, or why they are gone; and the translation of an earlier run's configuration."""

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
    "data.world": "set the labellers with data.label_bias, data.label_temperature and data.label_noise; the points of gold "
    "are constants",
    "data.english": "set the labellers with data.label_bias, data.label_temperature and data.label_noise",
    "guard.stop_on": "set guard.kl: null for never, or the KL in nats that ends the run",
    "feedback.scale": "the scale of the adapter's output is always learned",
    "feedback.init_scale": "W_o is initialised like the adapter's other weights",
    "feedback.judge_select": "the judge always gets a random choice of the groups",
    "ppo.std_floor": "it is always 0.01",
    "ppo.critic.gamma": "later rewards are never discounted",
    "policy.fit.weight_decay": "it is always 0",
    "reward.fit.weight_decay": "it is always 0.01",
    "reward.fit.margin": "the loss is Bradley-Terry without a margin",
    "eval.bootstrap": "an interval always uses 1000 resamples",
    "analysis.tokens": "the states of a response's tokens are always averaged",
    "judge.retries": "a failed request is always retried four times",
    "logger.name": "a run in wandb always has the name of its run folder",
}

# Value that a removed key must have had for the run to be valid in this version. Keys of GONE that are not listed here have
# no effect once the run's models exist.
REQUIRED: dict[str, Any] = {
    "feedback.scale": "free", "feedback.judge_select": "first", "ppo.std_floor": 1e-2, "ppo.critic.gamma": 1.0,
    "data.world.on_topic": 0.6, "data.world.key_word": 0.6, "data.world.order": 0.6, "data.world.opening": 0.3,
    "data.world.stop": 0.3, "data.world.polite": 0.2, "data.world.off_topic": -0.6, "data.world.repeat": -0.4,
    "data.world.extra_polite": -0.4, "data.world.filler": -0.15, "data.world.overlong": -0.2, "data.world.no_eos": -1.0,
    "data.world.max_on_topic": 4, "data.world.max_polite": 2, "data.world.soft_length": 11,
}  # fmt: skip
LABELLERS = {  # earlier defaults of keys whose default is now null
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
    """A run's configuration, nested as in its config.yaml, translated to the current keys.

    A removed key is dropped if the run's value matches the current behaviour; otherwise it stays, and the schema refuses it.
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
    """A section of the configuration; an empty one if it is missing."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
