"""Every benchmark in turn; `make bench` and `make bench-quick`.

    python experiments/speed/bench.py [--quick]

Writes outputs/bench/results.json after each part, so that a run that is stopped keeps what it has, and ends with the
figures beside what they are meant to reach.
"""

import datetime
import json
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

TARGETS = {
    "summarise.ratio_vs_trl_best": (">=", 3.0),
    "chat.ratio_vs_trl_best": (">=", 1.5),
    "r2m_overhead.time_percent": ("<=", 2.0),
    "r2m_overhead.memory_percent": ("<=", 1.0),
    "rm_update.full_over_light": (">=", 20.0),
    "adapter.textbook_over_ours": (">=", 20.0),
    "matmul_fraction.policy_forward": (">=", 0.7),
    "matmul_fraction.policy_forward_backward": (">=", 0.7),
    "matmul_fraction.reward_forward": (">=", 0.7),
}
OUT = Path("outputs/bench/results.json")


def main() -> None:
    if find_spec("trl") is None:
        raise SystemExit("trl is not installed: pip install -c constraints.txt -e '.[bench]' (make bench does it)")
    import adapter
    import against_trl
    import flops
    import overhead
    import scaling

    quick, begun = "--quick" in sys.argv, perf_counter()
    results: dict[str, Any] = {"machine": machine(quick)}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for part in (adapter, flops, overhead, scaling, against_trl):
        print(f"{part.__name__} ({perf_counter() - begun:.0f} s so far)", flush=True)
        results |= part.run(quick)
        results["machine"]["minutes"] = round((perf_counter() - begun) / 60, 1)
        OUT.write_text(json.dumps(results, indent=2))
    show(results, quick)
    print(f"{OUT}, in {(perf_counter() - begun) / 60:.1f} minutes")


def machine(quick: bool) -> dict[str, Any]:
    """The conditions under which the figures were taken."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu or platform.processor(), "threads": 1, "torch": torch.__version__, "commit": commit, "quick": quick,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def show(results: dict[str, Any], quick: bool) -> None:
    """The figures that have a target. Targets are for all 30 layers, so the quick run's few reach or miss nothing."""
    table = Table("figure", "median", "min", "max", "rounds", "target", *([] if quick else ["reached"]))
    for name, (sign, target) in TARGETS.items():
        entry = results[name]
        good = entry["median"] >= target if sign == ">=" else entry["median"] <= target
        figures = [f"{entry[key]:g}" for key in ("median", "min", "max", "rounds")]
        table.add_row(name, *figures, f"{sign} {target:g}", *([] if quick else ["yes" if good else "no"]))
    Console().print(table)


if __name__ == "__main__":
    main()
