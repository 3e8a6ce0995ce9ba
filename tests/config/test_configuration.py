"""The configuration: every file composes, every key is documented, every mistake is one line with exit code 2."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from composition import CONF, composed, files
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from r2m_cli.cli.explain import explain_composition
from r2m_cli.cli.main import main
from r2m_cli.config import schema
from r2m_cli.config.check import keys
from r2m_cli.errors import UserError
from r2m_cli.launch.preflight import preflight


@pytest.mark.parametrize("word", ["train", "sft", "reward", "evaluate", "analyze"])
def test_every_word_composes(word: str) -> None:
    assert composed(word=word).task == word


@pytest.mark.parametrize("group", ["policy", "reward", "feedback", "ppo", "rollout", "data", "engine", "logger"])
def test_every_choice_of_every_group_composes(group: str) -> None:
    for choice in files(group):
        frozen = ["feedback=none"] if choice in ("ensemble", "python") else []  # both are frozen baselines
        frozen += ["reward.function=os.path:basename"] if choice == "python" else []
        path = ["data.path=somewhere.jsonl"] if choice == "file" else []
        composed(f"{group}={choice}", *path, *frozen)


def test_every_configuration_file_says_what_it_is() -> None:
    for path in CONF.rglob("*.yaml"):
        if "hydra" not in path.parts:
            lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
            assert lines[0].startswith("# "), path


def test_every_key_has_a_comment() -> None:
    path = Path(schema.__file__)
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        plain = re.match(r"    \w+: (?!.*field\(default_factory=\w+Config\))[\w\[\] |]+ = ", line)
        if plain:
            above = [text for text in lines[max(0, number - 3) : number] if text.startswith("    # ")]
            assert above, f"{path.name}:{number + 1} has no comment above it"


def test_the_keys_are_those_that_were_agreed_on() -> None:
    """A new key needs a reason in its commit, and its line in keys.txt; one that goes needs an entry in config/old_keys.py."""
    assert keys() == Path(__file__).with_name("keys.txt").read_text().split()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("ppo.group_size=1", "ppo.group_size=1"),
        ("ppo.beta=-1", "at least 0"),
        ("data.seed=9223372036854775808", "below 2^63"),
        ("ppo.beta=nan", "at least 0"),
        ("feedback.omega=1.5", "between 0 and 1"),
        ("feedback.kind=r3m", "choose one of r2m, frozen"),
        ("engine.num_processes=2", "needs engine=zero"),
        ("ppo.mini_batches=3", "multiple of"),
        ("rollout.temperature=0", "above 0"),
        ("policy.size=64x2x5", "policy.size=64x2x5: the width 64 must be a multiple of twice the heads, 10"),
        ("data.kind=file", "data.path"),
        ("logger.kinds=[tensorbord]", "unknown logger"),
        ("train.stop_at=1000", "train.stop_at"),
        ("feedback.self_labels=none", "the update needs labels"),
        ("feedback.judge_replay=3", "feedback.judge"),
        ("feedback.warmup_lr=0", "above 0"),
        ("feedback.heads=3", "multiple of feedback.heads"),
        ("ppo.kl_target=0", "above 0"),
        ("guard.kl=-1", "guard.kl=-1.0: must be at least 0"),
        ("reward.members=0", "at least 1"),
    ],
)
def test_impossible_values_name_the_key(override: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error:
        composed(override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("policy.path=a", "eval.reward=b"), "it needs run=RUN"),
        (("analysis.pairs=2",), "at least 3"),
        (("engine=zero",), "engine=single"),
        (("runs=[a]", "run=b"), "in a separate command"),
        (("runs=[a]", "policy.path=b"), "in a separate command"),
        (("data=file", "data.path=a.jsonl", "policy.path=b", "reward.base=c"), "leaves no rows to fit one on"),
        (("output=a",), "it belongs to r2m sft and reward"),
    ],
)
def test_what_cannot_be_analysed_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error:
        composed(*overrides, word="analyze")
    assert "\n" not in str(error.value)


def test_a_key_added_with_plus_is_still_checked() -> None:
    with pytest.raises(UserError, match=r"unknown configuration key ppo\.typo"):
        composed("+ppo.typo=3")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
        ("seed", "seed: an override is key=value"),
        (
            "ppo.beta=range(0.1",
            "ppo.beta=range(0.1: no value (no viable alternative at input 'range(0.1'); close its brackets, or put it into quotes if they are part of a text",
        ),
        (
            "ppo.beta=choice()",
            "ppo.beta=choice(): no value (empty choice is not legal); close its brackets, or put it into quotes if they are part of a text",
        ),
        ("ppo=foo", "ppo=foo: the choices are grpo, ppo, reinforce_pp, remax, rloo"),
        ("world=one_class", "world=one_class: write +world=one_class, with a plus: it is added to the configuration"),
        ("+ppo=grpo", "+ppo=grpo: write ppo=grpo, without a plus: the group has a choice already"),
        ("fedback=none", "unknown configuration key fedback: did you mean feedback=...?"),
        ("ppo.bta=1", "unknown configuration key ppo.bta: did you mean ppo.beta?"),
        ("ppo.beta=null", "ppo.beta: it cannot be null"),
        ("runs=a", "runs: it is a list, write runs=[a]"),
        ("feedback=r2m,none", "feedback=r2m,none: several values make a sweep, which needs -m"),
    ],
)
def test_a_misspelt_override_is_one_line_that_names_it(override: str, says: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        composed(override)
    assert explain_composition(error.value, [override]) == says


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("ppo: {beta: 3}", "+experiment=mine: the first line of its file must be `# @package _global_`"),
        (
            "# @package _global_\nppo: {bta: 3}",
            "unknown configuration key ppo.bta: did you mean ppo.beta? (in experiment/mine.yaml)",
        ),
        *(
            (text, "{file}: its aliases (*name) expand to more than 10,000 values; write the values out")
            for text in (
                "ppo: &a {x: *a}",
                "a: &a [1]\n" + "\n".join(f"{b}: &{b} [{f'*{a},' * 99}]" for a, b in pairwise("abcdefgh")),
            )
        ),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_names_the_file(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content + "\n")
    done = command("train", "--config-dir", str(tmp_path), "+experiment=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"r2m: error: {says.format(file=tmp_path / 'experiment' / 'mine.yaml')}\n"


def test_aliases_of_a_file_of_ones_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: &s 3\ndata: {seed: *s}\n")
    done = command("train", "--config-dir", str(tmp_path), "+experiment=mine", "--cfg", "job", cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["data"]["seed"] == 3


@pytest.mark.parametrize(
    ("word", "key", "refused"),
    [
        ("train", "feedback.judge", True), ("evaluate", "feedback.judge", False), ("evaluate", "eval.judge", True),
    ],
)  # fmt: skip
def test_a_judge_without_a_key_is_refused_by_the_word_that_asks_it(
    monkeypatch: pytest.MonkeyPatch, word: str, key: str, refused: bool
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    config = composed("feedback=r2m_judged", f"{key}=openai", word=word)
    if refused:
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            preflight(config)
    else:
        preflight(config)


def test_options_may_stand_between_overrides(tmp_path: Path) -> None:
    done = command("train", "ppo.beta=3", "--cfg", "job", "feedback=none", "-p", "ppo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "beta: 3" in done.stdout


def command(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    import os

    return subprocess.run(
        [sys.executable, "-m", "r2m_cli.cli.main", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "ppo.grop_size=2"], "did you mean ppo.group_size?"),
        (["train", "ppo=grppo"], "ppo=grppo: the choices are grpo"),
        (["train", "seed=abc"], "seed: Value 'abc'"),
        (["train", "+experiment=nope"], "hh_rlhf_cpu"),
        (["trian"], "did you mean train?"),
        (["train", "data=file", "data.path=missing.jsonl"], "missing.jsonl: no such file"),
        (["train", "data=file", "data.path=data/missing.jsonl"], "data/missing.jsonl: no such file"),
        (["train", "run=somewhere"], "r2m evaluate"),
        (["train", "policy.fit.lr=-1"], "policy.fit.lr=-1"),
        (["train", "debug=quick"], "+debug="),
        (["train", "+metod=rloo"], "unknown configuration key metod: did you mean +method=...?"),
        (["train", "=3"], "no key"),
        (["train", "--seed=3"], "--seed=3; keys are set without dashes"),
        (["train", "--cfg=jobs"], "'jobs'"),
        (["train", "hydra.run.dir=/proc/nowhere"], "/proc/nowhere"),
        (["train", "resume=nowhere"], "nowhere"),
        (["train", "data.path=pairs.jsonl"], "data=file"),
        (["train", "ppo.lr=inf"], "ppo.lr=inf: must be a finite number"),
        (["train", "task=sft"], "r2m sft"),
        (["train", "engine.dtype=bf16"], "engine=zero"),
        (["train", "feedback.judge=gold", "feedback.alpha=1"], "have no weight"),
        (["reward", "reward.path=somewhere/model"], "reward.base"),
        (["train", "reward.combine=worst"], "reward.members"),
        (["report", "runs=[nowhere]"], "nowhere"),
        (["train", "runs=[nowhere]"], "belongs to r2m report and analyze"),
        (["analyze"], "name runs=[A,B], run=RUN, or models and pairs"),
        (["report", "nowhere/method=rloo/seed=0,world=0"], "nowhere/method=rloo/seed=0,world=0 is not a folder"),
        (["report"], "no run folder is given"),
        (["report", "nowhere", "seed=1"], "unknown configuration key seed: --cfg job"),
        (["evaluate", "nowhere"], "to name a run, write run=nowhere"),
        (["analyze", "a", "b"], "runs=[A,B]"),
        (["train", "-m", "seed=0,1", "--cfg", "job"], "leave out -m"),
        (["train", "--resolve"], "--cfg job"),
        (["train", "policy.path=/nowhere/policy"], "if it has moved, set policy.path=FOLDER"),
        (["train", "policy.path=nowhere"], "policy.path=nowhere"),
        (["train", "+experiment=hh_rlhf"], "CUDA GPU"),
    ],
)
def test_mistakes_are_one_clear_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the entry point, in this process: a new one costs seconds each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["r2m", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "usage:" not in said
    _, error, what = said.partition("r2m: error:")
    assert error
    assert "r2m: error:" not in what
    assert says in what


def test_a_broken_line_of_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    done = command("reward", "data=file", "data.path=pairs.jsonl", "reward.base=nowhere/x", cwd=tmp_path)
    assert done.returncode == 2


def test_what_is_missing_for_the_gpu_experiment_is_said_at_once(tmp_path: Path) -> None:
    said = command("train", "+experiment=hh_rlhf", cwd=tmp_path).stderr
    for missing in (
        "8 CUDA GPU(s)",
        "Qwen/Qwen2.5-3B-Instruct",
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        "Anthropic/hh-rlhf",
    ):
        assert missing in said


def test_help_names_words_groups_and_keys(tmp_path: Path) -> None:
    bare = command(cwd=tmp_path)
    assert bare.returncode == 0
    assert bare.stdout == command("--help", cwd=tmp_path).stdout
    assert all(word in bare.stdout for word in ("train", "sft", "reward", "evaluate", "analyze", "report"))
    helped = command("train", "--help", cwd=tmp_path).stdout
    assert "feedback: frozen, head_only, noise, none, r2m, r2m_judged, r2m_safe, shuffled" in helped
    assert "sweep: optuna_lr, seeds, table1, table2, table4" in helped
    assert "ppo.group_size=4" in helped
    assert "prompts_per_step: 16" in command("train", "--cfg", "job", cwd=tmp_path).stdout
    assert "conf" in command("train", "--info", cwd=tmp_path).stdout


def test_a_persons_own_config_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nppo:\n  beta: 0.123\n")
    shown = command("train", "--config-dir", "mine", "+experiment=own", "--cfg", "job", cwd=tmp_path).stdout
    assert "beta: 0.123" in shown


def test_shell_completion_knows_words_and_keys(tmp_path: Path) -> None:
    assert "complete" in command("-sc", "install=bash", cwd=tmp_path).stdout
    line = "r2m tr"
    assert command("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split() == [
        "train"
    ]
    line = "r2m train ppo.be"
    assert "ppo.beta=" in command("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))).stdout
    line = "r2m train feedback="
    assert (
        "feedback=r2m" in command("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))).stdout
    )
