"""The command: a word picks the task, Hydra does the rest."""

import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Before torch is imported by anything: a thread that waits must not spin (a busy neighbour would slow it tenfold).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WORDS = {
    "train": "optimise a policy against a reward model (no argument: the embedded gold world, on a CPU, in a minute)",
    "sft": "fit the policy's starting point on demonstrations",
    "reward": "fit a reward model on labelled pairs",
    "evaluate": "score a policy on fixed prompts and a reward model on held-out pairs",
    "analyze": "what hidden states tell of preference, reward and hacking; curves, memory and time of runs",
    "report": "a page, a picture and a table of runs: r2m report RUN [RUN...]",
}
# Hydra's options whose value is the next word.
VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
USAGE = """\
r2m: train a language model against a reward model that reads the policy's hidden states.

Usage: r2m WORD [group=choice] [key=value ...]

{words}

Examples
  r2m train                                            the embedded world, R2M as published
  r2m train feedback=none ppo.beta=0.2                 a frozen reward model and a stronger KL
  r2m train +experiment=hh_rlhf_cpu data.path=FILE     SmolLM2-135M on real preference data, on a laptop
  r2m train -m feedback=r2m,none seed=0,1,2            a sweep; +sweep=table4 runs one of the paper's tables
  r2m WORD --help                                      groups and keys of a word;  --cfg job prints the configuration
  eval "$(r2m -sc install=bash)"                       shell completion
"""


def main() -> None:
    """Entry point of `r2m`. Exit codes: 0 done, 1 a failure, 2 bad input, 128 + n ended by signal n."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(words="\n".join(f"  {word:9} {what}" for word, what in WORDS.items())), end="")
        return
    if arguments[0] == "--version":
        from r2m_cli import __version__

        print(f"r2m {__version__}")
        return
    from r2m_cli import completion

    arguments = completion.with_word(arguments, list(WORDS))
    word, *rest = arguments
    try:
        if word not in WORDS:
            raise _unknown_word(word)
        _run_hydra(word, rest)
    except KeyboardInterrupt:
        print("\nr2m: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `r2m --help | head`: nobody reads on, and that is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        sys.exit(_explain(error, word))


def _run_hydra(word: str, overrides: list[str]) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    from r2m_cli import folders, sweep  # noqa: F401  registers the names of the run folders
    from r2m_cli.errors import UserError
    from r2m_cli.report import arguments
    from r2m_cli.schema import Config, ReportConfig

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="report_schema", node=ReportConfig)

    overrides, runs = arguments.split(overrides) if word == "report" else (overrides, [])

    def job(composed: DictConfig) -> Any:  # a launcher may pickle it and call it in another process
        return _job(composed, word, runs)

    # With this set, Hydra hands its own errors to us instead of printing them its way and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for override in overrides:
        if override.startswith("="):
            raise UserError(f"{override}: an override is key=value, and this one has no key")
    sys.argv = ["r2m", *(_quoted(override) for override in sweep.in_order(_options_first(overrides)))]
    _check_options(sys.argv[1:], word)
    try:
        hydra.main(version_base="1.3", config_path="pkg://r2m_cli.conf", config_name=word)(job)()
    except sweep.JobFailed as failed:
        sys.exit(failed.code)
    finally:
        sweep.close()


def _job(composed: "DictConfig", word: str, runs: list[str]) -> Any:
    """One job: the whole of a single run, or one of a sweep's, in this process or in a launcher's worker.

    `runs`: the bare folders of `r2m report`.
    """
    from hydra.core.hydra_config import HydraConfig

    from r2m_cli import sweep

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    new = not any(run_dir.iterdir()) and not run_dir.samefile(Path.cwd())  # Hydra has made it, if nobody else has
    try:
        if word == "report":
            from r2m_cli.schema import ReportConfig
            from r2m_cli.tasks.report import report
            from r2m_cli.validate import typed

            config = typed(composed, ReportConfig)
            return report([*config.runs, *runs], config.out)
        from r2m_cli.errors import UserError
        from r2m_cli.launch import launch, objective
        from r2m_cli.resume import configured, go_on

        config = configured(composed, list(hydra_config.overrides.task))
        if config.task != word:
            raise UserError(f"task={config.task}: the word says what is run: r2m {config.task}")
        if word == "train" and sweep.in_a_sweep(hydra_config) and config.resume is None:
            config, done = go_on(config, run_dir)
            if done:
                print(f"r2m: done already: {run_dir}", file=sys.stderr, flush=True)
                return objective(run_dir)
        typed_here = None if sweep.in_a_sweep(hydra_config) else list(hydra_config.overrides.task)
        return launch(config, run_dir if config.resume is None else Path(config.resume).expanduser(), typed_here)
    except SystemExit as end:
        if end.code == 0 and sweep.in_a_sweep(hydra_config):  # train.stop_at ends a run, not its sweep
            raise sweep.failed(run_dir, 0, "stopped at train.stop_at") from None
        raise
    except Exception as error:
        code = _explain(error, word)
        if sweep.in_a_sweep(hydra_config):
            raise sweep.failed(run_dir, code, str(error) or type(error).__name__) from None
        raise SystemExit(code) from None
    finally:
        if new and not sweep.in_a_sweep(hydra_config):
            _forget(run_dir)


def _quoted(override: str) -> str:
    """The override, its value in quotes if that is a path with signs that mean something to Hydra: a sweep's runs have them
    (`resume=multirun/x/method=rloo/seed=0,world=0`), and names like `pairs (1).jsonl`."""
    key, _, value = override.partition("=")
    plain = re.fullmatch(r"[\w./~:+-]*", value) or "'" in value
    return override if plain or not Path(value).expanduser().exists() else f"{key}='{value}'"


def _options_first(arguments: list[str]) -> list[str]:
    """Options may stand anywhere; Hydra's parser wants none between two overrides."""
    options, overrides, rest = [], [], iter(arguments)
    for text in rest:
        if text.startswith("-"):
            options += [text, *([next(rest, "")] if text in VALUED else [])]
        else:
            overrides.append(text)
    return options + overrides


def _check_options(arguments: list[str], word: str) -> None:
    """Hydra's own parser answers an option that it does not know with a page of usage: it is asked here for one line."""
    from hydra._internal.utils import get_args_parser

    from r2m_cli.errors import UserError

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; keys are set without dashes (seed=1), the options are in r2m {word} --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known = parser.parse_args(arguments)
    if known.cfg and known.multirun:
        raise UserError("--cfg prints the configuration of one run: leave out -m, and give every key one value")
    if known.resolve and not known.cfg:
        raise UserError("--resolve needs --cfg job, whose references it resolves")


def _forget(run_dir: Path) -> None:
    """Remove the new folder of a job which left nothing in it but its configuration: neither a typo nor a fit, whose result
    stands elsewhere, may litter outputs/."""
    from r2m_cli.folders import remove_empty

    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {"config.yaml"}:
        (run_dir / "config.yaml").unlink(missing_ok=True)
        remove_empty(run_dir)


def _unknown_word(word: str) -> Exception:
    import difflib

    from r2m_cli.errors import UserError

    near = difflib.get_close_matches(word, WORDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "r2m --help lists them"
    return UserError(f"unknown word {word!r}: {hint} (train, sft, reward, evaluate, analyze, report)")


def _explain(error: Exception, word: str) -> int:
    """Print an error in its readable form; gives the exit code."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from r2m_cli.errors import UserError

    if isinstance(error, UserError):
        print(f"r2m: error: {error}", file=sys.stderr)
        return 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        from r2m_cli.validate import explain_composition

        said = explain_composition(error, sys.argv[1:], word)
        plugin = re.search(r"'hydra/(?:sweeper|launcher)/(optuna|joblib|submitit)", said)
        mend = f" Install the plugin: pip install 'r2m[{plugin[1]}]'" if plugin else ""
        print(f"r2m: error: {said}{mend}", file=sys.stderr)
        return 2
    if type(error).__module__.startswith("yaml."):
        print(f"r2m: error: a configuration file is not valid YAML: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if type(error).__module__.startswith("sqlalchemy."):
        print(f"r2m: error: hydra.sweeper.storage: {next(iter(str(error).splitlines()))}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.filename is not None:
        print(
            f"r2m: error: {error.filename}: {error.strerror}; name another place (hydra.run.dir, out, output, R2M_CACHE)",
            file=sys.stderr,
        )
        return 2
    from r2m_cli.launch import RankFailed

    if isinstance(error, RankFailed):
        print(f"r2m: {word} failed: {error}", file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 1


if __name__ == "__main__":
    main()
