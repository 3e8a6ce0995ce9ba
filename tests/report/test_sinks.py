"""The files, boards and terminal lines of a run, written for real and read back."""

import json
import math
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch

from r2m_cli.errors import UserError
from r2m_cli.sinks import Sinks


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


def rows(path: Path) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def run_steps(run_dir: Path, first: int, last: int, **options) -> None:
    with Sinks([], run_dir, 10, start_step=first, quiet=True, **options) as sinks:
        for step in range(first, last + 1):
            sinks.metrics(step, {"reward": step / 7, "kl": math.nan if step == 3 else step * 0.1})
            sinks.samples(step, [{"prompt": "héllo", "response": f"r{step}", "reward": step / 3}])
            if step in (2, 6):
                sinks.warn("the same warning,\n  over two lines")
        sinks.close({"reward": last / 7})


def test_numbers_of_any_kind_become_valid_json(tmp_path):
    with Sinks([], tmp_path, 2, quiet=True) as sinks:
        values = {"a": math.nan, "b": -math.inf, "c": torch.tensor(1.5), "d": numpy.float32(0.5), "e": 3}
        sinks.metrics(0, values)
        assert rows(tmp_path / "metrics.jsonl") == [{"step": 0, "a": None, "b": None, "c": 1.5, "d": 0.5, "e": 3}]
        sinks.samples(0, [{"prompt": [{"role": "user", "content": "x"}], "kl": math.nan}])
        sinks.close({"gold": math.nan, "nested": {"steps": [1, math.inf]}, "path": Path("/x")})
    sample = {"step": 0, "prompt": [{"role": "user", "content": "x"}], "kl": None}
    assert rows(tmp_path / "samples.jsonl") == [sample]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"gold": None, "nested": {"steps": [1, None]}, "path": "/x"}
    assert not list(tmp_path.glob("*.tmp"))


def test_resumed_files_equal_uninterrupted_ones(tmp_path):
    run_steps(tmp_path / "whole", 0, 10)
    run_steps(tmp_path / "halves", 0, 7)  # the checkpoint is of step 4; three steps more, then a kill while writing
    with (tmp_path / "halves" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "rew')
    run_steps(tmp_path / "halves", 5, 10)
    for file in ("metrics.jsonl", "samples.jsonl", "summary.json", "warnings.log"):
        assert (tmp_path / "halves" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert (tmp_path / "whole" / "warnings.log").read_text() == "the same warning, over two lines\n"


def test_a_fresh_run_starts_with_empty_files(tmp_path):
    run_steps(tmp_path, 0, 6)
    run_steps(tmp_path, 0, 1)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1]
    assert not (tmp_path / "warnings.log").exists()


def test_a_crash_leaves_no_summary(tmp_path):
    def crash():
        with Sinks([], tmp_path, 5, quiet=True) as sinks:
            sinks.metrics(0, {"reward": 1.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert len(rows(tmp_path / "metrics.jsonl")) == 1
    assert not (tmp_path / "summary.json").exists()


def test_unknown_kind_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="mlflow is unknown; choose wandb, tensorboard"):
        Sinks(["mlflow"], tmp_path, 5)


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    began = time.monotonic()
    with Sinks([], tmp_path, 30) as sinks:
        for step in range(31):
            sinks.metrics(step, {"reward": 1.0, "reward_frozen": 2.0, "kl": -0.5} if step else {"eval/reward": 1.0})
        sinks.warn("careful")
        sinks.close({})
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("step  0/30  ETA")
    assert lines[-2:] == ["step 30/30  reward   1.00  frozen   2.00  KL  -0.50  ETA 0:00:00", "warning: careful"]
    assert len(lines) <= 3 + (time.monotonic() - began) // 2  # one more every 2 s
    assert err == ""  # a rank's standard error goes to its log


def test_quiet_prints_nothing(tmp_path, capsys):
    run_steps(tmp_path, 0, 10)
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal(tmp_path):
    code = f"""
from r2m_cli.sinks import Sinks
with Sinks([], {str(tmp_path / "run")!r}, 3, start_step=2) as sinks:
    for step in (2, 3):
        sinks.metrics(step, {{"reward": 1.25, "reward_frozen": 2.5, "gold": -1.75, "kl": 3.125}})
    sinks.warn("watch [this]")
    sinks.close({{}})
"""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "90", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "warning: watch [this]" in text
    last = text.replace("\r", "\n").strip().splitlines()[-1]
    for part in ("3/3", "reward 1.25", "frozen 2.50", "gold -1.75", "KL 3.12", "ETA 0:00:00"):
        assert part in last
    assert shown.count(b"\x1b[?25h") == 1  # the cursor is back


def test_tensorboard_events_are_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 4), (3, 5)):  # resumed: steps 3 and 4 are purged and written again
        with Sinks(["tensorboard"], tmp_path, 5, config={"seed": 0}, start_step=first, quiet=True) as sinks:
            for step in range(first, last + 1):
                sinks.metrics(step, {"reward": step + first / 10, "kl": math.nan})
            sinks.samples(last, [{"prompt": "p", "response": "a response"}])
            sinks.close({})
        time.sleep(0.01)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward"]
    points = [(event.step, round(event.value, 3)) for event in events.Scalars("reward")]
    assert points == [(0, 0), (1, 1), (2, 2), (3, 3.3), (4, 4.3), (5, 5.3)]
    assert b"a response" in events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0]


def test_wandb_offline_is_read_back(tmp_path, capfd):
    with Sinks(["wandb"], tmp_path, 3, "some-project", "some-name", {"seed": 7}, quiet=True) as sinks:
        for step in range(3):
            sinks.metrics(step, {"reward": 1.25 + step, "kl": math.nan})
        sinks.samples(2, [{"prompt": [{"role": "user"}], "response": "a response", "gold": None}])
        sinks.close({"gold": 2.75})
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    wanted = (b"some-project", b"some-name", b"reward", b"1.25", b"2.25", b"2.75")
    deadline = time.monotonic() + 30  # wandb's own process writes the last of it after `finish` has returned
    while not all(text in file.read_bytes() for text in wanted):
        assert time.monotonic() < deadline, file.read_bytes()
        time.sleep(0.1)
    (table,) = folder.rglob("samples*.table.json")
    assert json.loads(table.read_text())["data"] == [['[{"role": "user"}]', "a response", None]]
    assert "a response" not in "".join(capfd.readouterr())

    with Sinks(["wandb"], tmp_path, 3, start_step=3, quiet=True) as sinks:  # resumed: the same run id
        sinks.close({})
    identifiers = {path.name.rsplit("-", 1)[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(identifiers) == 1


def test_wandb_with_a_key_but_no_network_goes_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    import wandb

    wandb.teardown()  # forget the settings that other tests left in this process
    began = time.monotonic()
    with Sinks(["wandb"], tmp_path, 3, quiet=True) as sinks:
        sinks.metrics(0, {"reward": 1.0})
        sinks.close({})
    wandb.teardown()
    assert time.monotonic() - began < 20
    assert "http://127.0.0.1:9 does not answer" in (tmp_path / "warnings.log").read_text()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
