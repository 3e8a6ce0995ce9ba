"""The pages in docs/: those written from the source are current, and what the others name exists."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from r2m_cli.config.check import keys
from r2m_cli.config.keys import keys_of, parts
from r2m_cli.config.schema import Config
from r2m_cli.monitor.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
METHODS = (DOCS / "methods.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
sys.modules["generate"] = generate  # dataclasses look their module up
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_pages_written_from_the_source_are_current(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == generate.PAGES[page](), "out of date: make docs"


def test_every_key_and_metric_is_explained() -> None:
    explained = [key for prefix, _, part in parts() for key in keys_of(part, prefix)]
    assert {key.name for key in explained} >= set(keys(Config))
    for key in explained:
        assert len(key.meaning) > 5, key.name
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in CATALOGUE)


def names_in(path: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", ["methods.md", "glossary.md"])
def test_every_function_and_file_named_in_the_pages_exists(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    for path in re.findall(r"`([\w/]+\.py)`", page):
        assert (ROOT / "src" / "r2m_cli" / path).exists(), path
    named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", page)
    assert len(named) > 5
    for path, name in named:
        file = ROOT / "src" / "r2m_cli" / path
        assert file.is_file(), path
        assert name in names_in(file), f"{path}::{name}"


def test_every_key_and_metric_named_in_the_methods_page_exists() -> None:
    known = {*keys(), *CATALOGUE}
    nodes = {key.rsplit(".", n)[0] for key in keys() for n in (1, 2) if key.count(".") >= n}
    for code in re.findall(r"`([^`]+)`", METHODS):
        name = code.split("=")[0]
        a_file = name.endswith((".py", ".md", ".json", ".jsonl", ".yaml", ".csv", ".log"))
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and not a_file:
            assert name in known | nodes, code
        elif re.fullmatch(r"[a-z_]+/[a-z_]+", name):
            assert name in known, code


PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / "experiments").rglob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or found.suffix != ".md" or anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
