"""Checks what a command needs and reports everything missing at once, before anything is loaded or fitted."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from r2m_cli.config.combinations import reads_curves_only, without_reward_model
from r2m_cli.config.registry import has_own_models
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.text import from_home

# Optional packages: (configuration key, value that needs the package) -> (package, how to install it).
PACKAGES = {
    ("logger", "wandb"): ("wandb", "pip install wandb"),
    ("logger", "tensorboard"): ("tensorboard", "pip install 'r2m[tensorboard]'"),
    ("rollout.engine", "vllm"): ("vllm", "pip install 'r2m[vllm]', or use rollout.engine=native"),
    ("engine", "zero"): ("deepspeed", "pip install deepspeed, or use engine=single"),
}


def preflight(config: Config) -> None:
    """Run the quick checks: the world's settings, GPUs, packages, the output folder, models (configuration, tokenizer and
    weight files), data, the policy's context length, and the judge of this command.

    Raises:
        UserError: everything that is missing or wrong; one line for each if there are several.
    """
    wrong: list[str] = []
    for check in _checks(config):
        try:
            check()
        except UserError as error:
            wrong += str(error).splitlines()
    if wrong:
        raise UserError(wrong[0] if len(wrong) == 1 else "\n  ".join([f"{len(wrong)} things are wrong:", *wrong]))


def _checks(config: Config) -> Iterator[Callable[[], object]]:
    """The checks, the quickest first."""
    if config.output is not None:
        yield lambda: _check_output(str(config.output))
    yield lambda: _check_packages(config)
    yield lambda: _check_gpus(config)
    if config.engine.deepspeed:
        from r2m_cli.distributed.settings import check_settings

        yield lambda: check_settings(config.engine)
    if config.rollout.vllm and importlib.util.find_spec("vllm") is not None:
        yield lambda: _check_vllm(config)
    if reads_curves_only(config):
        return
    if config.task == "evaluate":
        from r2m_cli.tasks.evaluate import check

        yield lambda: check(config)
    from r2m_cli.models.reward_function import load

    if config.data.kind != "file":
        from r2m_cli.data.source import world_of

        yield lambda: world_of(config.data)
    for key, template in (("policy.template", config.policy.template), ("reward.template", config.reward.template)):
        yield partial(_check_template, key, template)
    if config.reward.function is not None and config.task in ("train", "evaluate"):
        yield lambda: load(str(config.reward.function))
    named = _named(config)
    yield from (partial(_check_name, config, key, name) for key, name in named.items())
    yield lambda: _check_context(config, named)
    asked = {"train": config.feedback.judge, "evaluate": config.eval.judge}.get(config.task)
    if asked == "openai":
        yield lambda: _check_judge(config)


def new_folder(output: str) -> Path:
    """The path of output=. Raises UserError for a folder that is not empty, and for the current folder."""
    target = from_home(output).absolute()
    if target == Path.cwd():
        raise UserError(f"output={output}: is the current folder; choose a new one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"output={output}: exists and is not empty; choose a new folder")
    return target


def _check_output(output: str) -> None:
    target = new_folder(output)
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"output={output}: {there} is a file; choose a new folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"output={output}: {there} cannot be written to; choose another place")


def _check_packages(config: Config) -> None:
    chosen = {("logger", kind) for kind in config.logger.kinds if config.task == "train"} | {
        ("engine", config.engine.kind),
        ("rollout.engine", config.rollout.engine),
    }
    for key, value in sorted(chosen & PACKAGES.keys()):
        package, install = PACKAGES[key, value]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{key}={value}: the package {package} is not installed; {install}")


def _check_vllm(config: Config) -> None:
    from r2m_cli.models.vllm_sampler import check_settings

    check_settings(config.rollout)


def _check_judge(config: Config) -> None:
    from r2m_cli.files.cache import cache_dir
    from r2m_cli.judges.openai_judge import OpenAIJudge

    OpenAIJudge(config.judge, cache_dir() / "judge").reach()


def _named(config: Config) -> dict[str, str]:
    """The models and data that this command reads: configuration key -> name."""
    named: dict[str, str] = {}
    if reads_curves_only(config):
        return named
    if config.data.kind == "file" and config.data.path is not None:
        named["data.path"] = config.data.path
    for key, model, unread in (
        ("policy", config.policy, config.task == "reward" and config.data.kind == "file"),
        ("reward", config.reward, config.task == "sft" or without_reward_model(config)),
    ):
        fitted = (config.task, key) in (("sft", "policy"), ("reward", "reward"))  # this command creates it, from a base
        name = "path" if model.path is not None and not fitted else "base"
        value = model.path if name == "path" else model.base
        if value is not None and not unread:
            named[f"{key}.{name}"] = value
        elif not has_own_models(config.data.kind) and not unread:
            named[f"{key}.{'base' if fitted else 'path'}"] = ""  # there is no base to fit it from
    if config.task in ("train", "evaluate", "analyze"):
        c = config.reward
        named |= {f"reward.paths[{i}]": path for i, path in enumerate(c.paths)}
        # Members without a path are fitted from the base, even if reward.path itself is set.
        if c.path is not None and 1 + len(c.paths) < c.members and (c.base is not None or config.data.kind == "file"):
            named["reward.base"] = c.base or ""
    if config.task in ("evaluate", "analyze"):
        others = {"eval.reward": config.eval.reward, "eval.against": config.eval.against}
        named |= {key: name for key, name in others.items() if name is not None and name != "chosen"}
    return named


def _check_gpus(config: Config) -> None:
    if config.engine.device != "cuda":
        return
    import torch

    wanted, found = config.engine.num_processes, torch.cuda.device_count()
    if found < wanted:
        raise UserError(
            f"engine.device=cuda: engine.num_processes={wanted} needs {wanted} CUDA GPU(s), but this machine has {found}; use "
            "engine.device=cpu or another machine"
        )


def _check_template(key: str, template: str | None) -> None:
    from r2m_cli.data.forms import BUILT_IN, read_template

    if template is not None and template not in BUILT_IN:
        read_template(template, key)


def _check_name(config: Config, key: str, name: str) -> None:
    """Check one model, or the data: it exists on disk or, for a name on the hub, is cached or reachable."""
    from r2m_cli.data.readers import read_rows
    from r2m_cli.models import smollm2
    from r2m_cli.models.loading import looks_like_hub

    if not name:
        kind, group = config.data.kind, key.split(".")[0]
        raise UserError(
            f"{key} is null: data={kind} needs a model; set {key} to a folder or a name on the hub, or use {group}=smollm2"
        )
    if name == "smollm2":
        smollm2.check()  # its weights are converted only when they are needed
    elif looks_like_hub(name):
        _check_hub(key, name)
    elif key != "data.path":
        _check_folder(key, name)
    elif next(iter(read_rows(name, config.data.split, config.data.subset)), None) is None:
        raise UserError(f"data.path={name}: it has no rows; use a file with data")


def _check_folder(key: str, name: str) -> None:
    """Check a model's folder as far as possible without loading the weights."""
    from r2m_cli.models.loading import check_kind, load_tokenizer

    load_tokenizer(name, key)  # also checks the folder, its config.json and its weight files
    if key != "reward.base":  # a reward model can be fitted from a language model or a classifier
        check_kind(name, key, scorer=key.startswith(("reward.", "eval.reward")))


def _check_hub(key: str, name: str) -> None:
    """Check that a name on the hub is cached or reachable."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    kind = "dataset" if key == "data.path" else "model"
    try:
        snapshot_download(name, repo_type=kind, local_files_only=True)
        return
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=10)
    except HfHubHTTPError as error:
        raise UserError(f"{key}={name}: the hub's answer for this {kind}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # whatever the network stack raises
        raise UserError(
            f"{key}={name}: this {kind} is not on disk, and the hub cannot be reached ({type(error).__name__}); name a "
            f"folder, {key}=PATH"
        ) from error


def _check_context(config: Config, named: dict[str, str]) -> None:
    """Check that the context of the policy that is fitted or loaded is long enough for the run's prompts and responses."""
    from r2m_cli.build import check_context
    from r2m_cli.models.context import context_length, why_no_longer
    from r2m_cli.models.loading import FRESH_CONTEXT, load_config

    for key in ("policy.path", "policy.base"):
        if key in named:
            if named[key] not in ("", "smollm2"):  # its weights are converted only when they are needed
                try:
                    model = load_config(named[key], key)
                except UserError:  # already reported
                    return
                check_context(config, f"{key}={named[key]}", context_length(model), why_no_longer(model))
            return
    if has_own_models(config.data.kind) and not reads_curves_only(config):
        check_context(config, "the small policy that is fitted here", FRESH_CONTEXT)
