"""What `make site` does beside mkdocs: pages outside docs/ join the site, and links work there as they do on GitHub.

README.md becomes the first page. Every file of the repository that a page links to joins too: Markdown and code as a page, anything
else (pictures, tables) as it is.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
CODE = {".py": "python", ".yaml": "yaml", ".sh": "bash"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of mkdocs.yml that are not in docs/, and whatever any page links to."""
    waiting = {ROOT / name for name in _names(config.nav)} | set((ROOT / "docs").glob("*.md")) | {ROOT / "README.md"}
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        if not path.is_file():
            continue  # mkdocs names it
        uri = _uri(path)
        if files.get_file_from_path(uri) is None:
            if path.suffix in CODE:
                text = (
                    f"# {path.relative_to(ROOT)}\n\n~~~~{CODE[path.suffix]}\n{path.read_text(encoding='utf-8')}\n~~~~\n"
                )
                files.append(File.generated(config, uri, content=text))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting |= {_target(path, link) for link in LINK.findall(path.read_text(encoding="utf-8"))} - seen
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links, from a path in the repository to the same file's place in the site."""
    here = ROOT / "README.md" if page.file.src_uri == "index.md" else ROOT / page.file.src_uri
    if page.file.generated_by is None:
        here = ROOT / "docs" / page.file.src_uri
    folder = page.file.src_uri.rpartition("/")[0] or "."
    return LINK.sub(lambda link: relpath(_uri(_target(here, link[0])), folder), markdown)


def _names(nav: object) -> set[str]:
    """The files that a `nav` names."""
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ()
    return set().union(*map(_names, parts))


def _target(page: Path, link: str) -> Path:
    return Path(normpath(page.parent / link))


def _uri(path: Path) -> str:
    """Where a file of the repository stands in the site's sources."""
    if path == ROOT / "README.md":
        return "index.md"
    inside = path.relative_to(ROOT / "docs") if path.is_relative_to(ROOT / "docs") else path.relative_to(ROOT)
    return inside.as_posix() + (".md" if path.suffix in CODE else "")
