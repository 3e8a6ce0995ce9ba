"""`r2m analyze`: the paper's figures 1, 2 and 9 and table 5 of a model or a run, or figures 5, 6 and 7 of several runs.

docs/analyze.md defines every number exactly.
"""

from dataclasses import replace
from pathlib import Path

from r2m_cli.analysis import curves, figures
from r2m_cli.analysis.drift import drift
from r2m_cli.analysis.hacking import responses
from r2m_cli.analysis.pair_figures import pair_figures
from r2m_cli.analysis.results import Results
from r2m_cli.build import build_actors, build_heldout_reward, build_reward, local_device
from r2m_cli.checkpoints.continuation import changed_since
from r2m_cli.config.combinations import reads_curves_only
from r2m_cli.config.schema import Config
from r2m_cli.console import say
from r2m_cli.data.source import load_source, renderable
from r2m_cli.distributed.engine import DTYPES
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import POLICY
from r2m_cli.maths.statistics import RESAMPLES
from r2m_cli.models.formats import policy_format
from r2m_cli.models.loading import load_causal_lm
from r2m_cli.models.tokenizers import check_known
from r2m_cli.text import from_home


def run(config: Config, run_dir: Path) -> None:
    """Analyse; prints a table with the paper's numbers next to ours, and writes `analysis.json`, raw points and pictures.

    Raises:
        UserError: a run, model, pair or score that is missing, damaged or not finite.
    """
    results = Results(run_dir, RESAMPLES, config.seed)
    with results.all_or_nothing():
        if reads_curves_only(config):
            curves.analyse(config.runs, results)
        elif config.run is None:
            of_models(config, results)
        else:
            of_run(config, from_home(config.run), results)
        results.save()
    results.show()


def of_models(config: Config, results: Results) -> None:
    """Analyse a policy and a reward model on labelled pairs. Raises UserError."""
    assert config.policy.path is not None, "prepare() fills it"
    source, device = load_source(config.data, config.eval.prompts, evaluating=True), local_device(config)
    say(f"loading policy {config.policy.path}")
    chat = policy_format(config.policy, config.policy.path, "policy.path")
    lm = load_causal_lm(config.policy.path, "policy.path", DTYPES[config.engine.dtype], device)
    reward = build_reward(_frozen(config), 0, device)
    formats = [chat, *(member.format for member in reward.truncations)]
    source = renderable(source, formats)
    results.notes += check_known(source, *formats)
    pair_figures(config, source, lm, chat, reward, device, results)


def of_run(config: Config, run: Path, results: Results) -> None:
    """Analyse a finished run: its trained policy on held-out pairs and fixed prompts, and how its policy changes over the steps.

    Raises UserError.
    """
    if not (run / POLICY / "config.json").is_file():
        raise UserError(f"run={run}: it has no policy/; the run is not finished, or had checkpoint.export=false")
    other, same = config.eval.reward, config.reward.path
    if other is not None and from_home(other).resolve() == from_home(str(same)).resolve():
        raise UserError(
            f"eval.reward={other}: it is the run's own reward model, which cannot detect responses that it overrates; name another"
        )
    results.notes += changed_since(config, run)
    source = load_source(config.data, config.eval.prompts, evaluating=True)
    actors = build_actors(_frozen(config), source, str(run / POLICY))
    truth = build_heldout_reward(config, actors.device)
    truncations = (*actors.reward.truncations, *(truth.truncations if truth is not None else ()))
    formats = [actors.format, *(member.format for member in truncations)]
    source = renderable(source, formats)
    results.notes += check_known(source, *formats)
    lm = actors.policy.module.lm
    selection = pair_figures(config, source, lm, actors.format, actors.reward, actors.device, results)
    responses(config, source, actors, truth, results)
    steps, means = drift(config, run, actors.format, selection, actors.device, results)
    figures.hacking_and_drift(results.figures.get("table5"), steps, means, results.folder / "figure9.png")


def _frozen(config: Config) -> Config:
    """The configuration without reference and adapter: rewards come from the initial reward model, on the text alone."""
    return replace(config, ppo=replace(config.ppo, beta=0.0), feedback=replace(config.feedback, kind="none"))
