"""The table of what was measured, with what follows from several parts and what is meant to be reached."""

from typing import Any

# (part, row): what is to be reached with the shapes "paper", on one H100 or H200.
TARGETS = {
    ("decode", "32 sequences: r2m"): ("<=", 4.0),
    ("decode", "128 sequences: r2m"): ("<=", 4.0),
    ("rates", "policy_forward_backward"): (">=", 0.45),
    ("rates", "reward_forward"): (">=", 0.55),
    ("compared", "time of a step, R2M over vanilla"): ("<=", 2.0),
    ("compared", "peak memory, R2M over vanilla"): ("<=", 1.0),
    ("compared", "time of a step, TRL / r2m"): (">=", 4.0),
    ("startup", "from the command to the first step"): ("<=", 20.0),
}
Row = dict[str, Any]


def compared(results: dict[str, Any]) -> list[Row]:
    """The rows that need two parts; where one of them has no such row, that is said in place of the value."""

    def row(what: str, over: tuple[str, str], under: tuple[str, str], percent: bool) -> Row:
        values = [_value(results, *place) for place in (over, under)]
        lacking = [f"{part} has no row '{name}'" for (part, name), value in zip((over, under), values) if value is None]
        if lacking:
            return {"what": what, "value": None, "unit": "", "failed": ", ".join(lacking)}
        ratio = values[0] / values[1]
        return {"what": what, "value": 100 * (ratio - 1) if percent else ratio, "unit": "%" * percent, "failed": ""}

    return [
        row("time of a step, R2M over vanilla", ("r2m", "step"), ("vanilla", "step"), percent=True),
        row("peak memory, R2M over vanilla", ("r2m", "peak memory"), ("vanilla", "peak memory"), percent=True),
        row("time of a step, TRL / r2m", ("trl", "step"), ("r2m", "step"), percent=False),
    ]


def _value(results: dict[str, Any], part: str, what: str) -> Any:
    rows = results["parts"].get(part, {"rows": []})["rows"]
    return next((row["value"] for row in rows if row["what"] == what), None)


def show(results: dict[str, Any], shapes: str) -> None:
    """Print everything. Targets are for the shapes "paper" alone."""
    from rich.console import Console
    from rich.table import Table

    title = ", ".join(str(results["machine"][key]) for key in ("card", "torch", "commit", "date", "shapes"))
    table = Table("part", "what", "value", "target", "failed because", title=title)
    parts = results["parts"] | {"compared": {"rows": compared(results), "seconds": 0.0, "failed": ""}}
    for name, part in parts.items():
        for row in part["rows"]:
            value = "" if row["value"] is None else f"{row['value']:.3g} {row['unit']}"
            sign, target = TARGETS.get((name, row["what"]), ("", 0.0)) if shapes == "paper" else ("", 0.0)
            table.add_row(name, row["what"], value, sign and f"{sign} {target:g}", row["failed"])
        table.add_row(name, "[dim]the part", f"[dim]{part['seconds']:g} s", "", part["failed"], end_section=True)
    Console(width=150).print(table)
