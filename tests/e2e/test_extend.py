"""docs/extend.md, followed to the letter in a copy of the repository: its files, its entries, its commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
COPIED = ("src", "conf", "docs", "tests", "experiments", "setup.cfg", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


@dataclass(frozen=True)
class Step:
    """A code block, and the sentence above it that says what to do with it."""

    says: str
    code: str

    def apply(self, folder: Path) -> None:
        """Do it. Fails where the sentence is none that a reader could follow."""
        *_, name = re.findall(r"`([^`]+)`", self.says)
        file = folder / name
        if self.says.startswith("New file"):
            assert not file.exists(), name
            file.write_text(self.code)
        elif self.says.startswith("Add to the end of"):
            file.write_text(f"{file.read_text()}\n\n{self.code}")
        else:
            found = re.fullmatch(r"Add to `(\w+)` in `[^`]+`", self.says)
            assert found, self.says
            head = f"\n{found[1]} = {{\n"
            assert file.read_text().count(head) == 1, head
            file.write_text(file.read_text().replace(head, head + self.code))


BLOCK = re.compile(r"(?:^([^\n]*):\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEPS = [Step(says, code) for says, language, code in BLOCK.findall(PAGE) if language != "console"]
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository with everything that the page adds."""
    folder = tmp_path / "clone"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "src" / "r2m_cli" / "conf").symlink_to(folder / "conf")  # as the installed package has it
    for step in STEPS:
        step.apply(folder)
    return folder


def run(command: str, clone: Path, environment: dict[str, str]) -> None:
    """A line of the page, in the copy, with the copy's package."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    given = {"PATH": path, "PYTHONPATH": str(clone / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=clone, env=environment | given, capture_output=True, text=True, timeout=900, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"


@pytest.mark.long
def test_the_pages_own_tests_pass(clone: Path, environment: dict[str, str]) -> None:
    files = [name for step in STEPS for name in re.findall(r"`(tests/[^`]+)`", step.says)]
    assert len(files) == 3
    run(f"python -m pytest {' '.join(files)} tests/config/test_registry.py", clone, environment)


def test_the_pages_code_is_in_the_projects_style(clone: Path, environment: dict[str, str]) -> None:
    shutil.copy(ROOT / "ruff.toml", clone / "ruff.toml")
    run("python -m ruff check src tests && python -m ruff format --check src tests", clone, environment)


@pytest.mark.slow
def test_every_command_of_the_page_works(clone: Path, environment: dict[str, str]) -> None:
    before = json.loads((clone / "tests" / "e2e" / "trajectories.json").read_text())
    assert len(COMMANDS) > 6
    for command in COMMANDS:
        run(command, clone, environment)
    for name in ("centred", "last_only", "counting"):
        assert len((clone / "outputs" / name / "metrics.jsonl").read_text().splitlines()) == 3
        assert name in (clone / "docs" / "configuration.md").read_text()
    after = json.loads((clone / "tests" / "e2e" / "trajectories.json").read_text())
    assert set(after) - set(before) == {"centred-r2m", "rloo-last_only"}
    assert after["centred-r2m"][-1] != after["rloo-r2m"][-1] != after["rloo-last_only"][-1]
    assert {case: after[case] for case in before} == before
