"""The command: a word picks the task, Hydra does the rest."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Set before anything imports torch: waiting threads must not spin, which is up to ten times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WORDS = {
    "train": "optimise a policy against a reward model (no argument: the embedded gold world, on a CPU, in a minute)",
    "sft": "fit the policy's starting point on demonstrations",
    "reward": "fit a reward model on labelled pairs",
    "evaluate": "score a policy on fixed prompts and a reward model on held-out pairs",
    "analyze": "what hidden states reveal about preference, reward and reward hacking; curves, memory and time of runs",
    "report": "a page, a picture and a table of runs: r2m report RUN [RUN...]",
}
USAGE = """\
r2m: train a language model against a reward model that reads the policy's hidden states.

Usage: r2m WORD [group=choice] [key=value ...]

{words}

Examples
  r2m train                                            the embedded world, R2M as published
  r2m train feedback=none ppo.beta=0.2                 a frozen reward model and a stronger KL
  r2m train +experiment=hh_rlhf_cpu data.path=FILE     SmolLM2-135M on real preference data, on a laptop
  r2m train -m feedback=r2m,none seed=0,1,2            a sweep; +sweep=table4 runs one of the paper's tables
  r2m WORD --help                                      its groups and keys;  r2m help KEY explains one
  eval "$(r2m -sc install=bash)"                       shell completion
"""


def main() -> None:
    """Entry point of `r2m`. Exit codes: 0 done, 1 a failure, 2 bad input, 128 + n ended by signal n."""
    from r2m_cli.monitor.streams import outlived

    # Pictures are written to files: no display is needed. A notebook keeps its own backend.
    os.environ["MPLBACKEND"] = "Agg"
    try:
        with outlived():
            _command(sys.argv[1:])
    except OSError as error:  # stdout itself cannot be written, for another reason than a closed pipe
        from r2m_cli.cli.explain import explain

        sys.exit(explain(error, "stdout"))


def _command(arguments: list[str]) -> None:
    if not arguments or {*arguments} <= {"help", "-h", "--help"}:
        print(USAGE.format(words="\n".join(f"  {word:9} {what}" for word, what in WORDS.items())), end="")
        return
    if arguments[0] == "--version":
        from r2m_cli import __version__

        print(f"r2m {__version__}")
        return
    from r2m_cli.cli import completion

    word, *rest = completion.with_word(arguments, [*WORDS, "help"])
    try:
        if word == "help":
            if rest[0] not in WORDS:
                from r2m_cli.cli import help

                return print("\n".join(help.explained(name) for name in rest), end="")
            word, rest = rest[0], ["--help", *rest[1:]]
        if word not in WORDS:
            raise _unknown_word(word)
        run_word(word, rest)
    except KeyboardInterrupt:
        print("\nr2m: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from r2m_cli.cli.explain import explain

        sys.exit(explain(error, word))


class Failed(BaseException):
    """Carries the error of a single run through Hydra, which would print an Exception in its own way."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def run_word(word: str, arguments: list[str]) -> Path | None:
    """Run `r2m word arguments`; the command and the functions of `r2m_cli` both use this.

    `sys.argv`, the environment and Hydra's global state are restored afterwards.

    Returns:
        The folder that a single run filled, or the page of a report; None for a sweep and for pages of help.

    Raises:
        UserError: bad input; the message is one line.
        SystemExit: Ctrl-C or SIGTERM (128 + signal), or Hydra's own exit code.
        Exception: anything else is a bug in the program, or a rank that failed.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    from r2m_cli.cli import command_line, help, sweep  # sweep registers the names of the run folders
    from r2m_cli.cli.explain import one_line
    from r2m_cli.config.schema import Config, ReportConfig
    from r2m_cli.errors import UserError
    from r2m_cli.reporting import arguments as report_arguments

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="report_schema", node=ReportConfig)

    overrides, runs = report_arguments.split(arguments) if word == "report" else (arguments, [])
    filled: list[Path] = []
    failure: Exception | None = None

    def job(composed: DictConfig) -> Any:  # a launcher may pickle it and call it in another process
        result = _job(composed, word, runs)
        if isinstance(result, Path):
            filled.append(result)
        return result

    with _global_state():
        # With this set, Hydra raises its own errors instead of printing them and exiting with 1.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        sys.argv = ["r2m", *command_line.prepared(overrides, word)]
        try:
            if any(text in help.HELP for text in sys.argv):
                print(help.page(word, WORDS[word], *command_line.composed(sys.argv[1:], word)), end="")
                return None
            hydra.main(version_base="1.3", config_path="pkg://r2m_cli.conf", config_name=word)(job)()
        except sweep.JobFailed as failed:
            sys.exit(failed.code)
        except Failed as failed:
            failure = failed.error
        except SystemExit as end:
            # Hydra has printed one line about a missing --package, and exits with 1.
            raise SystemExit(2 if end.code == 1 and {"--cfg", "-c"} & {*sys.argv} else end.code) from None
        except Exception as error:
            typed = command_line.parted(sys.argv[1:])[1]
            raise UserError(one_line(error, word, typed, composing=True) or str(error)) from error
        finally:
            sweep.close()
    if failure is not None:
        raise failure
    return filled[0] if filled else None


@contextmanager
def _global_state() -> Iterator[None]:
    """Restore what a run changes in this process: Hydra's singleton, `sys.argv`, and one environment variable."""
    from hydra.core.global_hydra import GlobalHydra

    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    hydra, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        sys.argv = arguments
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _job(composed: "DictConfig", word: str, runs: list[str]) -> Any:
    """One job: a single run, or one run of a sweep, in this process or in a launcher's worker.

    `runs`: the folders that `r2m report` was given without a key.
    """
    from r2m_cli.monitor.streams import outlived

    with outlived():
        return _run_job(composed, word, runs)


def _run_job(composed: "DictConfig", word: str, runs: list[str]) -> Any:
    from hydra.core.hydra_config import HydraConfig

    from r2m_cli.cli import sweep
    from r2m_cli.cli.explain import explain

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    # An empty folder is one that Hydra has just created.
    new = not any(run_dir.iterdir()) and not run_dir.samefile(Path.cwd())
    try:
        if word == "report":
            from r2m_cli.config.check import typed
            from r2m_cli.config.schema import ReportConfig
            from r2m_cli.tasks.report import report

            config = typed(composed, ReportConfig)
            return report([*config.runs, *runs], config.out)
        from r2m_cli.errors import UserError
        from r2m_cli.launch.launch import launch, objective
        from r2m_cli.launch.resume import configured, go_on
        from r2m_cli.text import from_home

        config = configured(composed, list(hydra_config.overrides.task))
        if config.task != word:
            raise UserError(f"task={config.task}: the task is chosen by the word, not by a key: r2m {config.task}")
        in_sweep = sweep.in_a_sweep(hydra_config)
        if word == "train" and in_sweep and config.resume is None:
            config, done = go_on(config, run_dir)
            if done:
                print(f"r2m: already done: {run_dir}", file=sys.stderr, flush=True)
                return objective(run_dir)
        folder = run_dir if config.resume is None else from_home(config.resume)
        folder = launch(config, folder, None if in_sweep else list(hydra_config.overrides.task))
        return objective(folder) if in_sweep else folder
    except SystemExit as end:
        if end.code != 0:
            raise
        if sweep.in_a_sweep(hydra_config):  # train.stop_at ends a run, not its sweep
            raise sweep.failed(run_dir, 0, "stopped at train.stop_at") from None
        return folder
    except Exception as error:
        if not sweep.in_a_sweep(hydra_config):
            raise Failed(error) from None
        code = explain(error, word)
        raise sweep.failed(run_dir, code, str(error) or type(error).__name__) from None
    finally:
        if new and not sweep.in_a_sweep(hydra_config):
            _forget(run_dir)


def _forget(run_dir: Path) -> None:
    """Remove a job's new folder if it holds nothing but the configuration: a typo, or a fit that writes its result elsewhere,
    must not litter outputs/."""
    from r2m_cli.files.run_folder import CONFIG, remove_empty

    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= {CONFIG}:
        (run_dir / CONFIG).unlink(missing_ok=True)
        remove_empty(run_dir)


def _unknown_word(word: str) -> Exception:
    import difflib

    from r2m_cli.errors import UserError

    near = difflib.get_close_matches(word, WORDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "r2m --help lists them"
    return UserError(f"unknown word {word!r}: {hint} (train, sft, reward, evaluate, analyze, report)")


if __name__ == "__main__":
    main()
