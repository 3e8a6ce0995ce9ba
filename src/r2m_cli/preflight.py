"""What a run needs and this machine does not have, said at once and in one line: before anything is loaded or fitted."""

from r2m_cli.combinations import reads_curves_only
from r2m_cli.errors import UserError
from r2m_cli.schema import Config


def preflight(config: Config) -> None:
    """Check the world's numbers, GPUs, models, data, the policy's context, and the endpoint of the judge that this word asks.

    Raises:
        UserError: the first of them that is wrong, or all that is missing; or a name that is neither on this disk nor one of the hub's.
    """
    if config.data.kind != "file" and not reads_curves_only(config):
        from r2m_cli.data.source import world_of

        world_of(config.data)
    named = _named(config)
    missing = _missing_gpus(config) + _missing_from_hub(named)
    if missing:
        raise UserError("this run needs what is not here: " + "; ".join(missing))
    _check_local(config, named)
    _check_context(config, named)
    asked = {"train": config.feedback.judge, "evaluate": config.eval.judge}.get(config.task)
    if asked == "openai":  # client, endpoint and key, before anything is fitted
        from r2m_cli.cache import cache_dir
        from r2m_cli.judges.openai_judge import OpenAIJudge

        OpenAIJudge(config.judge, cache_dir() / "judge")


def _named(config: Config) -> dict[str, str]:
    """The models and data that this word reads: configuration key -> name."""
    named: dict[str, str] = {}
    if reads_curves_only(config):
        return named
    if config.data.kind == "file" and config.data.path is not None:
        named["data.path"] = config.data.path
    for key, model, unread in (
        ("policy", config.policy, config.task == "reward" and config.data.kind == "file"),
        ("reward", config.reward, config.task == "sft"),
    ):
        fitted = (config.task, key) in (("sft", "policy"), ("reward", "reward"))  # this word makes it, from a base
        name = "path" if model.path is not None and not fitted else "base"
        value = model.path if name == "path" else model.base
        if value is not None and not unread:
            named[f"{key}.{name}"] = value
        elif config.data.kind != "gold" and not unread:
            named[f"{key}.{'base' if fitted else 'path'}"] = ""  # only the gold world has models of its own
    if config.task in ("train", "evaluate", "analyze"):
        c = config.reward
        named |= {f"reward.paths[{i}]": path for i, path in enumerate(c.paths)}
        # Members that no one names are fitted from the base, though reward.path itself is given.
        if c.path is not None and 1 + len(c.paths) < c.members and (c.base is not None or config.data.kind == "file"):
            named["reward.base"] = c.base or ""
    if config.task in ("evaluate", "analyze"):
        others = {"eval.reward": config.eval.reward, "eval.against": config.eval.against}
        named |= {key: name for key, name in others.items() if name is not None and name != "chosen"}
    return named


def _missing_gpus(config: Config) -> list[str]:
    if config.engine.device != "cuda":
        return []
    import torch

    wanted, found = config.engine.num_processes, torch.cuda.device_count()
    return [f"{wanted} CUDA GPU(s) for engine.num_processes={wanted} (found {found})"] if found < wanted else []


def _missing_from_hub(named: dict[str, str]) -> list[str]:
    """Hub names that are neither cached nor, it seems, reachable."""
    from r2m_cli.models.loading import looks_like_hub

    names = {key: name for key, name in named.items() if looks_like_hub(name)}
    if not names:
        return []
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    missing = []
    for key, name in names.items():
        kind = "dataset" if key == "data.path" else "model"
        try:
            snapshot_download(name, repo_type=kind, local_files_only=True)
            continue
        except (LocalEntryNotFoundError, OSError, ValueError):
            pass
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=10)
        except HfHubHTTPError as error:
            missing.append(f"{kind} {key}={name} (the hub says: {str(error).splitlines()[0]})")
        except Exception as error:  # whatever the network stack raises
            missing.append(
                f"{kind} {key}={name} (not on disk, and the hub cannot be reached: {type(error).__name__}); give a folder "
                f"with {key}=PATH"
            )
    return missing


def _check_local(config: Config, named: dict[str, str]) -> None:
    """Names that are no hub's must be on this disk."""
    from r2m_cli.data.forms import BUILT_IN, read_template
    from r2m_cli.data.readers import read_rows
    from r2m_cli.models.loading import check_kind, load_tokenizer, looks_like_hub

    for key, template in (("policy.template", config.policy.template), ("reward.template", config.reward.template)):
        if template not in (None, *BUILT_IN) and not reads_curves_only(config):
            read_template(template, key)
    for key, name in named.items():
        if looks_like_hub(name) or name == "smollm2":  # the weights of smollm2 are converted when they are wanted
            continue
        if not name:
            kind = config.data.kind
            group = key.split(".")[0]
            raise UserError(
                f"{key} is null: with data={kind} name a model, {key}=FOLDER or its hub name, or {group}=smollm2"
            )
        if key == "data.path":
            next(iter(read_rows(name, config.data.split, config.data.subset)), None)
        else:
            load_tokenizer(name, key)  # with the folder and its config.json; only the weights are left
            if key != "reward.base":  # a reward model is made of either kind
                check_kind(name, key, scorer=key.startswith(("reward.", "eval.reward")))


def _check_context(config: Config, named: dict[str, str]) -> None:
    """A policy that is to be fitted or loaded must be able to read what the run would have it write."""
    from r2m_cli.build import check_context
    from r2m_cli.models.loading import FRESH_CONTEXT, context_length, load_config, why_no_longer

    for key in ("policy.path", "policy.base"):
        if key in named:
            if named[key] != "smollm2":  # its weights are converted when they are wanted
                model = load_config(named[key], key)
                check_context(config, f"{key}={named[key]}", context_length(model), why_no_longer(model))
            return
    if config.data.kind == "gold" and not reads_curves_only(config):
        check_context(config, "the small policy that is fitted here", FRESH_CONTEXT)
