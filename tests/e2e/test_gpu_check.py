"""The script for GPU machines: no part stops the others, finished ones are kept, and every part measures something on a CPU."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "experiments" / "gpu"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


ROW = f"import sys; sys.path.append({str(SCRIPTS)!r}); from rows import attempt, row\n"


def _parts(folder: Path, **scripts: str):
    """A part for each script, whose limit is five seconds."""
    from check import Part

    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(ROW + text)
    return {name: Part(folder / f"{name}.py", 5.0) for name in scripts}


def test_a_part_that_fails_or_hangs_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from check import run, unfinished
    from table import show

    parts = _parts(
        tmp_path,
        good="row('speed', 2.0, 'ms')",
        crash="row('before', 1.0); raise ValueError('the card is gone')",
        hangs="import time; row('first step', 3.0, 's'); time.sleep(60)",
        silent="pass",
        one_row="with attempt('flex'): raise TypeError('head size 12')\nrow('sdpa', 1.0)",
        last="row('works', 1.0)",
    )
    machine = {"card": "none", "torch": "2", "commit": "abc", "date": "today", "shapes": "paper"}
    results = {"machine": machine, "parts": {}}
    run(parts, results, tmp_path / "gpu.json", "paper", 60, dict(os.environ))

    written = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["failed"] for name, part in written.items()} == {
        "good": "",
        "crash": "ValueError: the card is gone",
        "hangs": "over its limit of 5 s",
        "silent": "it measured nothing",
        "one_row": "flex: TypeError: head size 12",
        "last": "",
    }
    assert written["good"]["rows"] == [{"what": "speed", "value": 2.0, "unit": "ms", "failed": ""}]
    # What a part has measured before it failed stays.
    assert [part["rows"][0]["value"] for name, part in written.items() if name in ("crash", "hangs")] == [1.0, 3.0]
    assert [name for name in parts if unfinished(results, name)] == ["crash", "hangs", "silent", "one_row"]
    show(results, "paper")
    printed = capsys.readouterr().out
    assert "the card is gone" in printed
    assert "trl has no row 'step'" in printed


def test_no_part_begins_when_the_time_is_up(tmp_path: Path) -> None:
    from check import run

    results = {"parts": {}}
    run(_parts(tmp_path, late="row('a', 1.0)"), results, tmp_path / "gpu.json", "paper", 0.5, dict(os.environ))
    assert results["parts"]["late"]["failed"] == "not begun: the time was up"


def test_results_of_another_commit_or_card_are_not_gone_on_with(tmp_path: Path) -> None:
    from check import begun_before

    file, now = tmp_path / "gpu.json", {"card": "H100", "commit": "abc", "date": "today"}
    before = {"machine": now | {"date": "yesterday"}, "parts": {"rates": {"failed": "", "rows": []}}}
    file.write_text(json.dumps(before))
    assert begun_before(file, now) == before
    for other in ({"commit": "def"}, {"card": "H200"}):
        assert begun_before(file, now | other) == {"machine": now | other, "parts": {}}


def test_what_needs_two_parts_is_computed_from_both() -> None:
    from table import compared

    def part(step: float, memory: float) -> dict[str, object]:
        return {"rows": [{"what": "step", "value": step}, {"what": "peak memory", "value": memory}]}

    rows = compared({"parts": {"r2m": part(5.1, 40.4), "vanilla": part(5.0, 40.0), "trl": part(30.6, 24.0)}})
    assert [row["value"] for row in rows] == pytest.approx([2.0, 1.0, 6.0])


def test_the_bundle_makes_r2m_importable_from_the_repository(tmp_path: Path) -> None:
    from bundle import unpack

    with pytest.raises(SystemExit, match="r2m is not installed here"):
        unpack(tmp_path / "none")
    (tmp_path / "site").mkdir()  # the wheels are installed already
    path = os.pathsep.join(unpack(tmp_path))
    code = "import r2m_cli, r2m_cli.conf as c; print(r2m_cli.__file__); print(c.__path__[0])"
    # -S: without this environment's own r2m.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.split()
    assert Path(first).resolve() == SCRIPTS.parents[1] / "src" / "r2m_cli" / "__init__.py"
    assert (Path(second) / "train.yaml").is_file()


@pytest.mark.slow
def test_every_part_measures_something_on_a_cpu(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "check.py"), "--shapes", "tiny", "--minutes", "20", "--out", str(tmp_path)]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1300)
    assert first.returncode == 0, first.stderr[-3000:]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    trl = "" if find_spec("trl") else "trl is not installed"
    assert {name: part["failed"] for name, part in parts.items()} == dict.fromkeys(parts, "") | {"trl": trl}
    assert len(parts) == 9
    for name, part in parts.items():
        if not (name == "trl" and trl):
            assert part["rows"], name
            assert all(row["value"] >= 0 for row in part["rows"]), name

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    begun = [line.split(" (")[0] for line in again.stdout.splitlines() if line.endswith("s left)")]
    assert begun == ([] if not trl else ["trl"])  # what is done is kept
