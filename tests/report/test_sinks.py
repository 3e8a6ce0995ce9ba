"""The files, boards and terminal lines of a run, written for real and read back."""

import json
import math
import os
import re
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from terminal import terminal

from r2m_cli.console import Count
from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import lines_of
from r2m_cli.monitor.panel import sparkline
from r2m_cli.monitor.sinks import Sinks


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


def test_a_separator_in_a_response_ends_no_line(tmp_path):
    said = {"prompt": [], "response": "one\u2028two\x85three\u2029"}
    with Sinks([], tmp_path, 2, quiet=True) as sinks:
        sinks.samples(1, [said])
    with Sinks([], tmp_path, 3, start_step=2, quiet=True):  # resumed: step 1 stays
        pass
    assert [json.loads(line) for line in lines_of(tmp_path / "samples.jsonl")] == [{"step": 1} | said]


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


def test_slow_work_before_the_steps_is_counted_now_and_then(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("r2m_cli.monitor.progress.time.monotonic", lambda: clock[0])
    count, silent, later = Count("reading pairs"), Count("reading pairs", shown=False), Count("more", before=20)
    for done in range(0, 32, 4):  # four in three seconds
        for each in (count, silent):
            each(done, 32)
        if done >= 20:
            later(done, 32, ", loss 0.5")
        clock[0] += 3
    # After 12 s 16 are done: as many again in 12 s. Of the others 4 in 18 s, 20 having been done before.
    assert capsys.readouterr().out.splitlines() == [
        "r2m: reading pairs: 16 of 32, ETA 0:00:12", "r2m: more: 24 of 32, loss 0.5, ETA 0:00:36"
    ]  # fmt: skip


def test_quiet_prints_nothing(tmp_path, capsys):
    run_steps(tmp_path, 0, 10)
    assert capsys.readouterr() == ("", "")


RUN = """
import pathlib, time
from r2m_cli.monitor.sinks import Sinks
with Sinks([], {folder!r}, 30) as sinks:
    sinks.stage("eval")
    sinks.metrics(0, {{"eval/gold": 1.0}})
    for step in range(1, 31):
        for stage in ("rollout", "policy_step"):
            sinks.stage(stage)
        sinks.metrics(step, {{"reward": 1.25, "reward_frozen": 2.5, "gold": -1.75, "kl": step / 10}})
        if step == 3:
            sinks.warn("watch [this]")
            print("a print", flush=True)
            while not pathlib.Path("go").exists():
                time.sleep(0.05)
    sinks.close({{}})
print("afterwards")
"""


def test_panel_on_a_terminal(tmp_path):
    command = [sys.executable, "-c", RUN.format(folder=str(tmp_path / "run"))]
    with terminal(command, tmp_path, {"PATH": os.environ["PATH"]}) as shown:
        whole = ("a print", "> policy step", "3/30", "0.10 to 0.30", "╰")  # a frame may be read while it is being drawn
        shown.until(lambda: all(part in "".join(shown.lines()) for part in whole) and len(shown.lines()) == 10)
        panel = shown.lines()
        assert shown.screen.cursor.hidden
        assert panel[:2] == ["warning: watch [this]", "a print"]
        assert panel[2].startswith("╭")
        assert re.search(r"eval  rollout  > policy step", panel[3])
        assert re.search(r"3/30  0:00:0\d  ETA \d:\d\d:\d\d", panel[4])
        assert re.search(r"reward +1.25  ▁▁▁ ", panel[5])
        assert re.search(r"gold +-1.75  ▁▁▁ ", panel[7])
        assert re.search(r"KL +0.30  ▁▅█ .* 0.10 to 0.30", panel[8])
        assert panel[9].startswith("╰")
        assert len(panel) == 10
        (tmp_path / "go").touch()
        assert shown.end() == 0
        assert not shown.screen.cursor.hidden
        last = "30/30 reward 1.25 frozen 2.50 gold -1.75 KL 3.00  0:00:0"
        assert shown.lines()[:2] == ["warning: watch [this]", "a print"]
        assert shown.lines()[-2].startswith(last)
        assert shown.lines()[-1] == "afterwards"
        assert not re.search("[╭╰│]", "".join(shown.lines()))  # nothing of the panel is left over


@pytest.mark.parametrize(("columns", "rows"), [(40, 24), (100, 8), (12, 3)])
def test_a_small_terminal_gets_a_line(tmp_path, columns, rows):
    command = [sys.executable, "-c", RUN.format(folder=str(tmp_path / "run"))]
    with terminal(command, tmp_path, {"PATH": os.environ["PATH"]}, columns, rows) as shown:
        shown.until(lambda: shown.lines()[-1].startswith("3/30 policy"))
        assert not re.search("[╭╰│]", "".join(shown.lines()))
        if columns == 40:
            assert shown.lines() == ["warning: watch [this]", "a print", "3/30 policy step reward 1.25 froze…"]
        (tmp_path / "go").touch()
        assert shown.end() == 0
        assert not shown.screen.cursor.hidden
        assert shown.lines()[-1] == "afterwards"


def test_the_panel_without_unicode(tmp_path):
    command = [sys.executable, "-c", RUN.format(folder=str(tmp_path / "run"))]
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with terminal(command, tmp_path, environment) as shown:
        whole = ("> policy step", "3/30", "0.10 to 0.30")
        shown.until(lambda: all(part in "".join(shown.lines()) for part in whole))
        assert shown.shown.isascii()
        assert re.search(r"KL +0.30  _\+@ ", "\n".join(shown.lines()))


def test_sparklines_show_the_course_of_means():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7, 0, 0], 3) == "▁█▁"
    assert sparkline([1, 1], 10) == "▁▁"
    assert sparkline([0.0, 7.0], 10, ascii_only=True) == "_@"


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


@pytest.mark.long
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

    with Sinks(["wandb"], tmp_path, 3, start_step=3) as sinks:  # resumed: the same run id
        began = capfd.readouterr().out.splitlines()
        sinks.close({})
    newest = (tmp_path / "wandb" / "latest-run").resolve()
    upload = f"note: wandb is offline; upload this run with: wandb sync {newest}"
    assert began == [upload]
    assert capfd.readouterr().out.splitlines()[-1] == upload
    identifiers = {path.name.rsplit("-", 1)[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(identifiers) == 1


def test_wandbs_objection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"logger=wandb: .*project name"):
        Sinks(["wandb"], tmp_path, 3, "a/b/c", quiet=True)


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
