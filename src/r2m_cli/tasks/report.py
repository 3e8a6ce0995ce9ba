"""`r2m report RUN...`: the page, the picture and the table of finished or running runs."""

import sys
from pathlib import Path

from r2m_cli.errors import UserError

PICTURES = (".png", ".pdf", ".svg")


def report(runs: list[str], out: str = "report.html") -> Path:
    """Write a page and a picture of `runs`, and a table, which is printed and written next to the page as .csv and .md.

    Args:
        runs: run folders, or folders with run folders below them (a multirun).
        out: the page (.html, with a .png next to it) or the picture (.png, .pdf or .svg, with a page next to it), relative
            to the current folder; missing folders are created.

    Returns:
        The page's path.

    Raises:
        UserError: a folder without a run, a broken file in a run, or an `out` with another suffix.
    """
    from r2m_cli.reporting import page, picture, table  # matplotlib and pandas: slow to import, and only needed here
    from r2m_cli.reporting.runs import load_runs

    path = Path(out)
    if path.suffix not in (".html", *PICTURES):
        raise UserError(f"out={out}: neither a page nor a picture; use a name that ends in .html, .png, .pdf or .svg")
    image = path.with_suffix(".png") if path.suffix == ".html" else path
    for target in (path.with_suffix(".html"), image):
        if target.is_dir():
            raise UserError(f"out={out}: {target} is a folder; choose another file name")
    print(f"r2m: report in {path}: reading {', '.join(runs)}", file=sys.stderr, flush=True)
    loaded = load_runs(runs)
    text = page.render(loaded)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.draw(loaded, image)
    written = page.write(text, path.with_suffix(".html"))
    rows = table.summarise(loaded)
    table.write(rows, path)
    table.show(rows)
    beside = (image, path.with_suffix(".csv"), path.with_suffix(".md"))
    print(f"r2m: wrote {', '.join(str(file) for file in (written, *beside))}")
    print(f"r2m: next: open {written} in a browser", flush=True)
    return written
