"""Values, options and files that cannot work: one line each, exit code 2, nothing written, nothing that hangs."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from r2m_cli.cli.main import main
from r2m_cli.config.check import keys


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command has to say, or a line for each of several things, after which it exits with 2."""
    monkeypatch.setattr(sys, "argv", ["r2m", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        main()
    said = capfd.readouterr().err
    assert end.value.code == 2, said
    lines = [line for line in said.splitlines() if not line.endswith(": checking models and data")]
    assert lines[0].startswith("r2m: error: ")
    assert len(lines) == 1 or lines[0].endswith(f" {len(lines) - 1} things are wrong:"), said
    return "\n".join(lines)


MISTAKES = [
    ("train.steps=1" + "0" * 30, "train.steps=1e+30: must be at most 1000000000"),
    ("reward.fit.epochs=9223372036854775808", "reward.fit.epochs=9e+18: must be at most 10000"),
    ("policy.size=1" + "0" * 40 + "x2x4", "must be WIDTHxLAYERSxHEADS, such as 64x2x4"),
    ("policy.size=99999x2x4", "policy.size=99999x2x4: must lie between 1x1x1 and 65536x1024x1024"),
    ("seed=1" + "0" * 5000, "seed=1000"),
    ("data.prompts=-1" + "0" * 30, "must be at least"),
    ("ppo.lr=1e400", "finite"),
    ("hydra/launcher=null", "hydra/launcher=null: names no choice; leave it out, or choose one of basic"),
    ("hydra/sweeper=", "names no choice"),
    ("reward=null", "reward=null: names no choice; leave it out, or choose one of ensemble, hub, python, smollm2, tiny"),
    ("+experiment=null", "+experiment=null: names no choice"),
    ("+method=", "names no choice"),
    ("ppo=5", "ppo=5: the choices are grpo"),
    ("hydra=null", "hydra"),
    ("train=null", "train"),
    ("train=5", "train"),
    ("seed=${oc.env:HOME}", "could not be converted"),
    ("seed=${nope}", "nope"),
    ("data.path=${", "data.path"),
    ("data.path=[a]", "[a]"),
    ("seed=???", "seed"),
    ("policy._target_=os.system", "_target_"),
    ("+policy._target_=os.system", "unknown configuration key policy._target_"),
    ("~ppo.beta", "cannot be removed"),
    ("~data", "cannot be removed"),
    ("+=3", "no key"),
    ("seed=1\x07", "control character"),
    ("data.path=donn\udce9es", "donn\\xe9es: not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "says"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_an_impossible_override_is_one_line(
    override: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [] if "data" in override.partition("=")[0] else ["data=file", "data.path=missing.jsonl"]
    assert says in refused(monkeypatch, capfd, "train", *given, override)
    assert not list(tmp_path.iterdir())


VALUES = (
    "null",
    "-1",
    "9223372036854775808",
    "1e400",
    "nan",
    "",
    "[]",
    "{}",
    "a=b",
    "données",
    "1e-400",
    "${x}",
    "'",
    "(",
    "[",
)


def test_whatever_a_key_is_set_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few of all combinations, always the same; the data set that is missing ends what is right."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    for key in rng.sample([key for key in keys() if key not in ("data.kind", "data.path", "resume", "run")], 12):
        refused(monkeypatch, capfd, "train", "data=file", "data.path=missing.jsonl", f"{key}={rng.choice(VALUES)}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cfg", "job", "ppo.bta=1"], "did you mean ppo.beta?"),
        (["--config-dir", ".", "ppo.beta=range(0.1"], "ppo.beta=range(0.1: no value"),
        (["--config-dir", ".", "ppo=foo"], "ppo=foo: the choices are"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["ppo.beta=3", "--cfg"], "--cfg: needs a value"),
        (["data.path=x", "--package"], "--package: needs a value"),
        (["--cfg", "job", "--info"], "--cfg and --info exclude each other"),
        (["--cfg", "job", "+sweep=table4", "seed=0,1"], "seed=0,1: --cfg shows the configuration of one run"),
        (["--info", "ppo.lr=range(2)"], "ppo.lr=range(2): --info shows the configuration of one run"),
        (["--cfg", "job", "seed=["], "seed=[: no value"),
    ],
)
def test_an_option_in_front_of_a_mistake_is_not_blamed(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(monkeypatch, capfd, "train", *arguments)


def test_info_takes_no_override_for_its_value(tmp_path: Path) -> None:
    """In a process of its own: Hydra sets up logging for it."""
    command = [sys.executable, "-m", "r2m_cli.cli.main", "train", "--info", "ppo.beta=0.321"]
    assert "0.321" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# @package _global_\n# Müller\nppo: {beta: 1}\n".encode("latin-1"), "mine.yaml:2: not UTF-8 (byte 0xfc)"),
        (b"\xef\xbb\xbf# @package _global_\nppo: {beta: 1}\n", "mine.yaml: begins with a byte-order mark"),
        (b"# @package _global_\nppo:\n\tbeta: 1\n", "mine.yaml:3: a tab; indent with spaces"),
        (b"", "mine.yaml: is empty"),
        (b"# @package _global_\n", "mine.yaml: is empty"),
        (b"- a\n- b\n", "mine.yaml: holds no keys"),
        (b"text\n", "mine.yaml: holds no keys"),
        (b"# @package _global_\nseed: 1\nseed: 2\n", "found duplicate key seed; keep one of the two"),
        (b"# @package _global_\nppo: {beta: 1\n", "not valid YAML"),
        (b"# @package _global_\nseed: ${\n", "mine.yaml"),
        (b'# @package _global_\ndata:\n  path: "\\ud83d"\n', "mine.yaml:3: \\ud83d is half of a surrogate pair"),
        (b'# @package _global_\ndefaults:\n  - "\\ud83d"\n', "mine.yaml:3: \\ud83d is half of a surrogate pair"),
        (b"# @package _global_\ndefaults:\n  - other\n", "other.yaml: is empty"),
        (b"# @package _global_\ndefaults:\n  - override /ppo: own\n", "ppo/own.yaml: is empty"),
        (None, "mine.yaml: not a file"),
    ],
)
def test_a_broken_file_of_ones_own_is_named(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for group in ("experiment", "ppo"):
        Path("my conf", group).mkdir(parents=True)
    Path("my conf", "experiment", "other.yaml").touch()
    Path("my conf", "ppo", "own.yaml").touch()
    file = Path("my conf", "experiment", "mine.yaml")
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    line = refused(monkeypatch, capfd, "train", "--config-dir", "my conf", "+experiment=mine", "--cfg", "job")
    assert line.startswith("r2m: error: my conf/")
    assert says in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("train:\n  steps: abc", "train.steps: Value 'abc' of type 'str' could not be converted to Integer"),
        ("seed: null", "seed: it cannot be null"),
        ("reward:\n  fit: null", "reward.fit: it cannot be null"),
        ("reward:\n  paths: 3", "reward.paths: Invalid value assigned: AnyNode is not a ListConfig, list or tuple"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_of_ones_own_is_named_with_its_key(
    content: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiment").mkdir()
    Path("experiment", "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    line = refused(monkeypatch, capfd, "train", "--config-dir", ".", "+experiment=mine", "--cfg", "job")
    assert line == f"r2m: error: {says} (in experiment/mine.yaml)"
