"""Every command in README.md and docs/ works as it stands there: it composes, and what a CPU can do in seconds is run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import QUICK, Run

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name != "extend.md"  # its commands need what the page adds: a test of its own follows it
}


def fenced(page: str) -> Iterator[list[str]]:
    """The commands of a page's console blocks, in words. Where a block has prompts ("$ "), its other lines are output."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


def inline(page: str) -> Iterator[list[str]]:
    """The commands `r2m ...` within a page's text."""
    for code in re.findall(r"(?<!`)`(r2m [^`]+)`(?!`)", PAGES[page]):
        words = shlex.split(code.replace("\\|", "|"))
        yield words[: next((i for i, word in enumerate(words) if word in ("|", "&")), None)]


def of_r2m(page: str, *, blocks_only: bool = False) -> list[list[str]]:
    """The arguments of a page's r2m commands, each once."""
    commands = [words[1:] for words in [*fenced(page), *([] if blocks_only else inline(page))] if words[0] == "r2m"]
    return [list(words) for words in dict.fromkeys(map(tuple, commands))]


def write_files(page: str) -> None:
    """Write the files that a page gives in full."""
    for name, text in re.findall(
        r"A file `([^`]+)`[^`]*(?:`[^`]+`[^`]*)*?```yaml\n(.*?)^```", PAGES[page], re.M | re.S
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def one_run(words: list[str]) -> list[str]:
    """A sweep's first run, which `--cfg job` can print."""
    words = [word for word in words if word not in ("-m", "--multirun")]
    return [word if "[" in word else re.sub(r"(=[^,]+),.*", r"\1", word) for word in words]


@pytest.mark.parametrize("page", [page for page in PAGES if of_r2m(page)])
def test_every_command_composes(r2m: Run, page: str) -> None:
    write_files(page)
    for words in of_r2m(page):
        if words[0] in ("WORD", "help") or words[-1] == "--help":
            continue
        r2m(*one_run(words), "--cfg", "job")


def test_the_other_commands_are_make_targets_and_extras() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for page in PAGES:
        for words in fenced(page):
            if words[0] == "make":
                assert words[1] in targets, f"{page}: {words}"
            elif words[:2] == ["pip", "install"] and words[-1].startswith("r2m["):
                assert words[-1][4:-1] in setup["options.extras_require"], f"{page}: {words}"
            else:
                assert words[0] in (
                    "r2m",
                    "git",
                    "cd",
                    "source",
                    "python",
                    "pip",
                    ".venv/bin/pip",
                    ".venv/bin/pre-commit",
                ), words


def test_the_quick_start_runs(r2m: Run) -> None:
    commands = [
        words[1:] for words in fenced("README.md") if words[0] == "r2m" and any("runs/" in word for word in words)
    ]
    assert [words[0] for words in commands] == ["train", "train", "evaluate", "report"]
    for words in commands:
        r2m(*words, *(QUICK if words[0] == "train" else ()))
    assert Path("runs/report.html").is_file()


# Why a command is only composed.
NOT_RUN = {
    "+experiment=hh_rlhf": "GPUs and models from the hub, or minutes of SmolLM2: tests/e2e/test_own_data.py runs that",
    "+experiment=english": "minutes of SmolLM2: tests/e2e/test_english.py runs it",
    "+experiment=ultrafeedback": "GPUs and models from the hub",
    "submitit_slurm": "a Slurm cluster",
    "feedback.judge=openai": "an endpoint: tests/judges has one",
    "MODEL output=": "a base model: tests/e2e/test_own_data.py has one",
    "+sweep=": "many runs: tests/e2e/test_sweeps.py runs small ones",
}


@pytest.fixture
def things(r2m: Run) -> dict[str, str]:
    """What the placeholders of the pages stand for: two finished runs, their models, and pairs in a file."""
    r2m("train", *QUICK, "feedback=r2m", "logger.samples_every=1", "hydra.run.dir=outputs/r2m")
    r2m("train", *QUICK, "feedback=none", "data.seed=1", "hydra.run.dir=outputs/vanilla")  # other models, too
    shutil.copytree("outputs/r2m", "outputs/demo/r2m")
    shutil.copytree("outputs/r2m", "multirun/2026-01-31/12-00-00/0_seed=0")
    said: dict[str, list[str]] = {}
    for line in Path("outputs/r2m/samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        said.setdefault(sample["prompt"][0]["content"], []).append(sample["response"])
    pairs = [
        {"prompt": f"{opening} {prompt}", "chosen": responses[0], "rejected": responses[1]}
        for prompt, responses in said.items()
        for opening in prompt.split()  # enough different prompts
        if len({responses[0], responses[1], ""}) == 3
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return {
        "RUN": "outputs/r2m",
        "A,B": "outputs/vanilla,outputs/r2m",
        "MODEL": "outputs/r2m/policy",
        "RM": "outputs/r2m/reward_model",
        "OTHER_RM": "outputs/vanilla/reward_model",
        "OTHER/policy": "outputs/vanilla/policy",
        "PAIRS": "pairs.jsonl",
        "OTHER": "pairs.jsonl",
        "prompts.jsonl": "pairs.jsonl",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.startswith("docs/") and of_r2m(page, blocks_only=True)]
)
def test_the_blocks_of_a_page_run(r2m: Run, things: dict[str, str], page: str) -> None:
    known = re.compile(
        r"(?<=[=\[ ])(" + "|".join(sorted(map(re.escape, things), key=len, reverse=True)) + r")(?=[\] ]|$)"
    )
    write_files(page)
    for words in of_r2m(page, blocks_only=True):
        line = " ".join(words)
        if any(part in line for part in NOT_RUN):
            continue
        words = known.sub(lambda name: things[name[0]], line).split(" ")
        words = [
            path for word in words for path in (sorted(map(str, Path().glob(word))) if word.endswith("/*") else [word])
        ]
        r2m(*words, *(QUICK if words[0] == "train" else ()))
