"""The configuration as a checked, typed object: unknown keys, values out of range, combinations that cannot work."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from r2m_cli import sweep
from r2m_cli.combinations import check_combinations
from r2m_cli.errors import UserError
from r2m_cli.schema import Config, ReportConfig

CHOICES: dict[str, tuple[Any, ...]] = {
    "task": ("train", "sft", "reward", "evaluate", "analyze"),
    "policy.fit.parameters": ("full", "lora", "head"),
    "reward.fit.parameters": ("full", "lora", "head"),
    "reward.combine": ("mean", "worst", "uncertainty"),
    "feedback.kind": ("r2m", "frozen", "noise", "shuffled", "head_only", "none"),
    "feedback.schedule": ("cosine", "constant"),
    "feedback.states": ("policy", "reference", "reward"),
    "feedback.reads": ("states", "tokens", "both"),
    "feedback.query": ("reward", "learned"),
    "feedback.scale": ("free", "rte"),
    "feedback.self_labels": ("all", "agreed", "none"),
    "feedback.judge": ("none", "gold", "labeller", "openai"),
    "feedback.judge_select": ("first", "wide", "close"),
    "feedback.pair": ("recomputed", "annotated"),
    "ppo.algorithm": ("rloo", "grpo", "remax", "reinforce_pp", "ppo"),
    "ppo.ratio": ("sequence", "token"),
    "ppo.kl_in": ("loss", "reward"),
    "ppo.kl_estimator": ("k1", "k2", "k3"),
    "ppo.normalise": ("none", "scale", "whiten"),
    "ppo.lr_schedule": ("constant", "linear", "cosine"),
    "guard.stop_on": ("none", "kl"),
    "data.kind": ("gold", "english", "file"),
    "eval.judge": ("none", "reward", "gold", "openai"),
    "analysis.tokens": ("response", "all"),
    "engine.kind": ("single", "zero"),
    "engine.stage": (0, 1, 2, 3),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.dtype": ("fp32", "bf16"),
    "engine.attention": ("sdpa", "flex", "padded"),
}
GROUPS = ("data", "engine", "feedback", "logger", "policy", "ppo", "reward", "rollout")  # folders of conf/
# key -> smallest value allowed
AT_LEAST: dict[str, float] = {
    "train.steps": 1, "ppo.group_size": 1, "ppo.prompts_per_step": 1, "ppo.epochs": 1, "ppo.mini_batches": 1,
    "ppo.beta": 0, "ppo.std_floor": 1e-8, "ppo.lr": 0, "ppo.clip_low": 0, "ppo.clip_high": 0, "ppo.warmup_steps": 0,
    "ppo.weight_decay": 0, "ppo.max_grad_norm": 0, "feedback.dim": 1, "feedback.heads": 1, "feedback.lr": 0, "rollout.max_new_tokens": 1,
    "rollout.max_prompt_tokens": 1, "engine.num_processes": 1, "engine.num_nodes": 1, "rollout.tokens_per_batch": 1,
    "engine.threads": 1, "engine.timeout": 1, "engine.node_rank": 0, "checkpoint.every": 0, "checkpoint.keep": 1,
    "eval.every": 0, "eval.prompts": 1, "eval.pairs": 1, "logger.samples_every": 0, "reward.max_tokens": 2,
    "data.prompts": 1, "data.pairs": 2, "data.demonstrations": 1, "policy.fit.epochs": 1, "policy.fit.batch_size": 1,
    "policy.fit.lora_rank": 1, "reward.fit.epochs": 1, "reward.fit.batch_size": 1, "reward.fit.lora_rank": 1,
    "policy.hidden_size": 1, "policy.num_layers": 1, "policy.num_heads": 1, "reward.hidden_size": 1,
    "reward.num_layers": 1, "reward.num_heads": 1, "seed": 0, "data.seed": 0, "policy.fit.lr": 0, "reward.fit.lr": 0,
    "policy.fit.weight_decay": 0, "reward.fit.weight_decay": 0, "policy.lora_rank": 0, "reward.members": 1,
    "reward.uncertainty": 0, "reward.fit.margin": 0, "reward.fit.centring": 0, "reward.fit.seed": 0,
    "feedback.init_scale": 0, "feedback.warmup_pairs": 0, "feedback.replay_pairs": 0, "feedback.judge_pairs": 0,
    "feedback.warmup_epochs": 1, "feedback.judge_replay": 0, "reward.pretrain_epochs": 0, "guard.kl": 0,
    "ppo.entropy_bonus": 0, "ppo.eos_penalty": 0, "ppo.critic.lr": 0, "ppo.critic.clip": 0, "eval.preflight_pairs": 0,
    "eval.bootstrap": 100, "eval.best_of": 1, "analysis.sequences": 2, "analysis.pairs": 3, "judge.retries": 0, "judge.workers": 1,
}  # fmt: skip
SEEDS = ("seed", "data.seed", "reward.fit.seed")
UNIT_INTERVAL = ("feedback.omega", "feedback.alpha", "data.holdout", "ppo.critic.gamma", "ppo.critic.gae_lambda")


def typed(container: DictConfig, schema: type = Config) -> Any:
    """The composed configuration as a dataclass instance, every key checked against the schema.

    Hydra lets `+ppo.typo=3` past its own check; merging the plain container onto the dataclasses does not.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    plain = OmegaConf.to_container(container, resolve=True)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except ConfigKeyError as error:
        raise UserError(unknown_key(str(error.full_key), schema)) from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason}" if error.full_key else reason) from None


def unknown_key(key: str, schema: type = Config) -> str:
    """The error line for a key, or a group of choices, that does not exist."""
    known = keys(schema)
    groups = (
        {**{name: name for name in GROUPS}, **{name: f"+{name}" for name in sweep.GROUPS}} if schema is Config else {}
    )
    if near := difflib.get_close_matches(key, groups, n=1, cutoff=0.8):
        return f"unknown configuration key {key}: did you mean {groups[near[0]]}=...?"
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    hint = f"did you mean {near[0]}?" if near else "--cfg job prints every key"
    return f"unknown configuration key {key}: {hint}"


def keys(schema: type = Config) -> list[str]:
    """Every leaf key of a schema, dotted, in order."""

    def walk(node: DictConfig, prefix: str) -> list[str]:
        found: list[str] = []
        for name in node:
            value = node._get_node(name)
            path = prefix + str(name)
            found += walk(value, path + ".") if isinstance(value, DictConfig) else [path]
        return found

    return walk(OmegaConf.structured(schema), "")


def validate(config: Config) -> None:
    """Check the values that types cannot check, and the combinations that cannot work.

    Raises:
        UserError: one line with the key, the value and the mend.
    """
    tree = OmegaConf.structured(config)

    def value(key: str) -> Any:
        return OmegaConf.select(tree, key)

    for key, allowed in CHOICES.items():
        if value(key) not in allowed:
            raise UserError(f"{key}={value(key)}: choose one of {', '.join(map(str, allowed))}")
    for key, least in AT_LEAST.items():
        if not value(key) >= least:  # also false for NaN
            raise UserError(f"{key}={value(key)}: must be at least {least:g}")
    for key in SEEDS:
        if value(key) >= 2**63:
            raise UserError(f"{key}={value(key)}: must be below 2^63")
    for key in keys():
        if isinstance(value(key), float) and not math.isfinite(value(key)):
            raise UserError(f"{key}={value(key)}: must be a finite number")
    for key in UNIT_INTERVAL:
        if not 0 <= value(key) <= 1:
            raise UserError(f"{key}={value(key)}: must lie between 0 and 1")
    for node in ("policy", "reward"):
        if value(f"{node}.hidden_size") % (2 * value(f"{node}.num_heads")):
            raise UserError(
                f"{node}.hidden_size={value(f'{node}.hidden_size')}: must be a multiple of twice {node}.num_heads"
                f"={value(f'{node}.num_heads')} (rotary position embeddings need an even head width)"
            )
    check_combinations(config)


def _unreadable(override: str) -> bool:
    """Whether Hydra's grammar refuses what was typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if override.startswith("-"):
        return False
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return True
    return False


def explain_composition(error: Exception, overrides: Sequence[str] = (), word: str = "train") -> str:
    """One line for what Hydra or OmegaConf says of an override: a typo in a key, a group or a value.

    Args:
        overrides: what was typed.
        word: `r2m word`.
    """
    import re

    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(error) + "\n" + str(cause)
    key = re.search(r"[Kk]ey '([^']+)' (?:is )?not in", text)
    override = re.search(r"Could not override '([^']+)'", text)
    named = (override or key).group(1) if override or key else None  # type: ignore[union-attr]
    if named in sweep.GROUPS:
        if typed := [text for text in overrides if text.startswith(f"+{named}=")]:
            return f"{typed[0]}: the first line of its file must be `# @package _global_`"
        return f"{named}=...: write +{named}=..., with a plus: it is added to the configuration"
    if named is not None:
        full = re.search(r"full_key: (\S+)", text)
        file = re.search(r"In '([^']+)': ConfigKeyError", text)
        unknown = unknown_key(full[1] if full else named, ReportConfig if word == "report" else Config)
        return f"{unknown} (in {file[1]}.yaml)" if file and "/" in file[1] else unknown
    if wrong := re.search(
        r"merging override ([^=\s]+)=[\s\S]*(Value '.*' of type '\w+' could not be converted to \w+)", text
    ):
        return f"{wrong[1]}: {wrong[2]}"
    if null := re.search(r"merging override (\S+)=\S*\s*field '[^']*' is not Optional", text):
        return f"{null[1]}: null is no value for it"
    if bare_list := re.search(
        r"merging override ([^=\s]+)=(.*)\s*Invalid value assigned: \w+ is not a ListConfig", text
    ):
        return f"{bare_list[1]}: it is a list, write {bare_list[1]}=[{bare_list[2].strip()}]"
    if several := re.search(r"Ambiguous value for argument '([^']*)'", text):
        return f"{several[1]}: several values make a sweep, which needs -m"
    if bare := re.search(r"parsing override '(.*)'\s*missing EQUAL", text):
        mend = {
            "evaluate": f"; a run is named by run={bare[1]}",
            "analyze": "; runs are named by run=RUN or runs=[A,B]",
        }
        return f"{bare[1]}: an override is key=value{mend.get(word, '')}"
    if group := re.search(
        r"Could not find '([^']+)/([^']+)'\s*Available options in '[^']+':\n((?:\t.*\n)+)", str(error)
    ):
        return f"{group[1]}={group[2]}: there is {', '.join(group[3].split())}"
    if unreadable := next(filter(_unreadable, overrides), None):
        reason = next(iter(str(cause).splitlines()), "")
        return (
            f"{unreadable}: no value ({reason}); close its brackets, or put it into quotes if they are part of a text"
        )
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    if cause is not error:
        said += [line.strip() for line in str(cause).splitlines()[:1] if line.strip() not in said]
    said = [line for line in said if not line.startswith(("See https", "Config search path", "provider="))]
    return " ".join(said) if said else type(error).__name__
