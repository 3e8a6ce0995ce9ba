"""Where fitted models lie in the cache: a folder name that changes with everything that the fit depends on."""

from dataclasses import asdict
from pathlib import Path

from r2m_cli.config.schema import Config, PolicyConfig, RewardConfig
from r2m_cli.data.forms import BUILT_IN
from r2m_cli.data.source import identity_of
from r2m_cli.files.cache import cache_dir, digest_of, key_of
from r2m_cli.seeds import Stream
from r2m_cli.text import from_home


def policy_cache(config: Config) -> Path:
    """The cache folder of this configuration's fitted policy, whether it exists yet or not."""
    model = _identity(config.policy)
    del model["lora_rank"]  # how RL trains it, not how it was fitted
    lengths = [config.rollout.max_prompt_tokens, config.rollout.max_new_tokens]  # demonstrations are cut to them
    rest = [config.data.demonstrations, lengths, config.engine.dtype]
    identity = key_of("policy", model, identity_of(config.data, labels=False), rest)
    return cache_dir() / f"policy-{identity}"


def reward_cache(config: Config) -> Path:
    """The cache folder of this configuration's fitted reward model, whether it exists yet or not."""
    model = _identity(config.reward)
    # Neither membership in an ensemble nor an additional reward function changes how a model is fitted.
    for key in ("members", "paths", "combine", "uncertainty", "function", "function_weight"):
        del model[key]
    labels: list[object] = [identity_of(config.data), config.engine.dtype]
    if config.data.kind != "file":  # the pairs are sampled from the starting policy
        labels += [
            _content(config.policy.path) or policy_cache(config).name,
            config.data.pairs,
            config.rollout.max_new_tokens,
        ]
        labels += [config.rollout.temperature, config.eval.pairs]
        if config.policy.template is not None:
            labels.append(template_identity(config.policy.template))
        if config.reward.pretrain_epochs:
            labels += [asdict(config.policy.fit), config.data.demonstrations, config.rollout.max_prompt_tokens]
    if config.reward.fit.seed:  # earlier versions fitted these models with other random draws
        labels.append(int(Stream.MEMBER))
    return cache_dir() / f"reward-{key_of('reward', model, labels)}"


def _identity(c: PolicyConfig | RewardConfig) -> dict[str, object]:
    """The settings that determine a fitted model."""
    model = asdict(c) | {"path": None, "base": _content(c.base), "template": template_identity(c.template)}
    unset = [key for key in ("template", "end_token") if model.get(key) is None]
    return {key: value for key, value in model.items() if key not in unset}


def template_identity(template: str | None) -> str | None:
    """A template file is identified by its content, a built-in form by its name."""
    file = from_home(template or "")
    return digest_of(file) if template not in (None, *BUILT_IN) and file.is_file() else template


def _content(name: str | None) -> str | None:
    """A folder is identified by its content, so that a model refitted in place counts as new; other names stay unchanged."""
    folder = from_home(name or "")
    inside_cache = folder.parent == cache_dir()
    return (
        digest_of(folder) if name and folder.is_dir() and not inside_cache else (folder.name if inside_cache else name)
    )
