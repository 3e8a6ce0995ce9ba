"""Run folders that were cut, edited or made to do harm: one line, or a report of the rest; no traceback, nothing that hangs."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import QUICK, Run

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
SHORT = (*QUICK, "train.stop_at=1", "train.steps=2", "logger.samples_every=1", "eval.every=1")


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _add(text: str) -> Callable[[Path], None]:
    """Before the last line: a torn last one is another matter."""

    def change(file: Path) -> None:
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([*lines[:-1], text + "\n", lines[-1]]))

    return change


def _value(name: str, value: str) -> Callable[[Path], None]:
    """A value of the last line."""

    def change(file: Path) -> None:
        *lines, last = file.read_text().splitlines(keepends=True)
        row = json.dumps(json.loads(last) | {name: "@"}).replace('"@"', value)
        file.write_text("".join([*lines, row + "\n"]))

    return change


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None  # type: ignore[func-returns-value]


REFUSED = [
    ("metrics.jsonl", _pipe, "metrics.jsonl: not a regular file"),
    ("samples.jsonl", _pipe, "samples.jsonl: not a regular file"),
    ("config.yaml", _pipe, "config.yaml: not a regular file"),
    ("warnings.log", _pipe, "warnings.log: not a regular file"),
    ("summary.json", _pipe, "summary.json: not a regular file"),
    ("config.yaml", _bytes(BOMB.encode()), "config.yaml: has YAML aliases"),
    ("config.yaml", _bytes(b"[" * 100_000), "config.yaml: not valid YAML"),
    ("config.yaml", _bytes(b"a: " + b"x" * (1 << 20)), "config.yaml: larger than 1,048,576 bytes"),
    ("config.yaml", _bytes(b"\xff\xfe"), "config.yaml: not valid YAML"),
]  # fmt: skip
LEFT_OUT = [
    ("metrics.jsonl", _value("reward", "[[1]]")),
    ("metrics.jsonl", _value("eval/gold", "1e400")),
    ("metrics.jsonl", _value("eval/kl", f"{10**400}")),
    ("metrics.jsonl", _value("eval/reward", '{"a": [null]}')),
    ("samples.jsonl", _value("response", '"\\ud83d"')),
    ("samples.jsonl", _value("gold", f"{10**400}")),
    ("samples.jsonl", _value("reward", "[]")),
]


NO_STEPS = (
    b'{"step": 1e400}', b'{"step": -1}', b'{"step": NaN}', b'{"step": "1"}', b'{"step": true}', b"[]", b"null", b"[" * 100_000,
    b'{"step": %d}' % 10**30, b"\xff", b'{"step": 1, "kl": "\xe2\x28"}',
)  # fmt: skip
NO_SAMPLES = (b'{"step": 1, "prompt": [{}], "response": ""}', b'{"step": 1, "prompt": ""}')


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def run(r2m: Run, tmp_path: Path, made: Path) -> Path:
    """A run of one step, made once."""
    if not made.exists():
        r2m("train", *SHORT, f"hydra.run.dir={made}")
        (made / "summary.json").write_text("{}")
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("name", "harm", "says"), REFUSED)
def test_what_cannot_be_read_is_one_line(
    r2m: Run, tmp_path: Path, run: Path, name: str, harm: Callable[[Path], None], says: str
) -> None:
    harm(run / name)
    with _within(20):
        said = r2m("report", "run", "out=r.html", code=2).stderr
    assert says in said
    assert [line for line in said.splitlines() if not line.startswith("r2m: report in ")] == [said.splitlines()[-1]]
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


def test_values_that_are_no_numbers_are_left_out_of_the_report(r2m: Run, tmp_path: Path, run: Path) -> None:
    for name, harm in LEFT_OUT:
        harm(run / name)
    with _within(60):
        r2m("report", "run", "out=r.html")
    assert not list(tmp_path.glob("*.tmp"))
    assert "nan" not in (tmp_path / "r.md").read_text()


def test_lines_that_are_no_rows_are_left_out_and_counted_by_a_report_and_on_resume(
    r2m: Run, tmp_path: Path, run: Path
) -> None:
    whole = {}
    for name, bad in (("metrics.jsonl", NO_STEPS), ("samples.jsonl", (*NO_STEPS, *NO_SAMPLES))):
        whole[name] = (run / name).read_bytes()
        first, *others = whole[name].splitlines(keepends=True)
        (run / name).write_bytes(first + b"\n".join([*bad, b"", *others]))
    with _within(60):
        reported = r2m("report", "run", "out=r.html").stderr
        resumed = r2m("train", "resume=run", "train.stop_at=null").stdout
    lines = {name: ", ".join(f"{name}:{number}" for number in (2, 3, 4)) for name in whole}
    no_step, count = "not a JSON object with a step", len(NO_STEPS)
    assert f"metrics.jsonl: left out {count}: {no_step} ({lines['metrics.jsonl']}, ...)" in reported
    assert f"metrics.jsonl: left out {count}: {no_step} ({lines['metrics.jsonl']}, ...)" in resumed
    assert f"samples.jsonl: left out {count}: {no_step} ({lines['samples.jsonl']}, ...)" in resumed
    says = f"samples.jsonl: left out {count + 2}: not a sample with step, prompt and response ({lines['samples.jsonl']}, ...)"
    assert reported.count(says) == 1
    assert (run / "metrics.jsonl").read_bytes().startswith(whole["metrics.jsonl"])


def test_every_word_that_reads_a_run_refuses_a_pipe_or_a_bomb(r2m: Run, tmp_path: Path, run: Path) -> None:
    (run / "policy").mkdir()
    (run / "policy" / "config.json").write_text("{}")
    whole = (run / "config.yaml").read_bytes()
    for harm, says in ((_bytes(BOMB.encode()), "config.yaml: has YAML aliases"), (_pipe, "it has no config.yaml")):
        harm(run / "config.yaml")
        for words in (("train", "resume=run"), ("evaluate", "run=run"), ("analyze", "run=run")):
            with _within(20):
                assert says in r2m(*words, code=2).stderr
    (run / "config.yaml").unlink()
    (run / "config.yaml").write_bytes(whole)
    _pipe(run / "metrics.jsonl")
    with _within(60):
        assert "not a regular file" in r2m("analyze", "runs=[run]", "hydra.run.dir=curves", code=2).stderr
        assert "not a regular file" in r2m("train", "resume=run", "train.stop_at=null", code=2).stderr
