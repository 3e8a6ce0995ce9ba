"""`r2m report runs=[a,b] out=report.png`: the figure and the table of finished or running runs."""

from pathlib import Path

from rich.console import Console

from r2m_cli.errors import UserError


def report(runs: list[str], out: str = "report.png") -> Path:
    """Draw `runs` to `out` and tabulate them: printed, and written beside the picture as .csv and .md.

    Args:
        runs: run folders, or folders with run folders below them (a multirun).
        out: the picture to write (.png, .pdf or .svg), from the current folder; missing folders are made.

    Returns:
        The picture's path.

    Raises:
        UserError: a folder that holds no run, a broken file in one, or a picture of another kind.
    """
    from r2m_cli.report import figure, table  # matplotlib and pandas: slow to import, and only needed here
    from r2m_cli.report.runs import load_runs

    path = Path(out)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"out={out}: not a picture's name; end it in .png, .pdf or .svg")
    loaded = load_runs(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw(loaded, path)
    rows = table.summarise(loaded)
    table.write(rows, path)
    table.show(rows)
    Console().print(f"{path} (and beside it {path.stem}.csv, {path.stem}.md)", highlight=False)
    return path
