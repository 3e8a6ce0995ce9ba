"""Is r2m right on this GPU, and how fast? Every part in turn, one table, and gpu.json. See README.md.

python experiments/gpu/check.py [--minutes 8] [--parts a,b] [--shapes paper|tiny] [--out outputs/gpu]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from bundle import unpack
from table import show

HERE = Path(__file__).parent
SPEED = HERE.parent / "speed"


@dataclass(frozen=True)
class Part:
    """A script that measures, in a process of its own."""

    script: Path
    limit: float  # seconds; with tiny shapes, which a busy CPU may be slow at, only --minutes counts
    arguments: tuple[str, ...] = ()


PARTS = {
    "tests": Part(HERE / "selected_tests.py", 100),
    "numbers": Part(HERE / "same_numbers.py", 110),
    "decode": Part(HERE / "decoding.py", 60),
    "rates": Part(HERE / "rates.py", 50),
    "r2m": Part(HERE / "steps.py", 80, ("r2m",)),
    "vanilla": Part(HERE / "steps.py", 70, ("vanilla",)),
    "trl": Part(HERE / "steps.py", 100, ("trl",)),
    "startup": Part(HERE / "startup.py", 60),
    "profile": Part(HERE / "profiling.py", 60),
}
Record = dict[str, Any]  # of a part: seconds, failed (why, empty if it did not), rows


def main() -> None:
    asked = arguments()
    paths = [*([] if find_spec("r2m_cli") else unpack()), str(SPEED), str(HERE)]
    sys.path[:0] = paths
    import torch

    if asked.shapes == "paper" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA GPU here; `--shapes tiny` tries everything on a CPU")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "gpu.json"
    results = begun_before(file, machine(asked.shapes))
    names = asked.parts.split(",") if asked.parts else [n for n in PARTS if unfinished(results, n)]
    run({name: PARTS[name] for name in names}, results, file, asked.shapes, 60 * asked.minutes, environment)
    show(results, asked.shapes)
    print(f"{file}; each part's own words are beside it")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="no part begins or goes on after so long")
    parser.add_argument("--parts", help=f"only these, and anew: {','.join(PARTS)}")
    parser.add_argument("--shapes", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    asked = parser.parse_args()
    unknown = [name for name in (asked.parts or "").split(",") if name and name not in PARTS]
    if unknown:
        parser.error(f"--parts: no part is named {unknown[0]}; there are {', '.join(PARTS)}")
    return asked


def machine(shapes: str) -> dict[str, Any]:
    """The conditions under which the figures were taken."""
    import torch
    import transformers
    from bench import machine as of_cpu

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"card": card, "shapes": shapes, "transformers": transformers.__version__} | of_cpu(quick=shapes == "tiny")


def begun_before(file: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What gpu.json has of an earlier call under the same conditions, else nothing yet."""
    if file.exists():
        results: dict[str, Any] = json.loads(file.read_text())
        if results["machine"] | {"date": now["date"]} == now:
            return results
    return {"machine": now, "parts": {}}


def unfinished(results: dict[str, Any], name: str) -> bool:
    """Whether a part has not run yet, or failed."""
    return name not in results["parts"] or bool(results["parts"][name]["failed"])


def run(
    parts: dict[str, Part],
    results: dict[str, Any],
    file: Path,
    shapes: str,
    seconds: float,
    environment: dict[str, str],
) -> None:
    """Run the parts one after the other, and write gpu.json after each. Where one fails, the next goes on."""
    end = monotonic() + seconds
    for name, part in parts.items():
        left = end - monotonic()
        print(f"{name} ({left:.0f} s left)", flush=True)
        results["parts"][name] = (
            ran(name, part, file.parent, shapes, min(part.limit, left) if shapes == "paper" else left, environment)
            if left > 1
            else {"seconds": 0.0, "failed": "not begun: the time was up", "rows": []}
        )
        file.write_text(json.dumps(results, indent=1))


def ran(name: str, part: Part, out: Path, shapes: str, limit: float, environment: dict[str, str]) -> Record:
    """Run one part and everything that it starts, for `limit` seconds at most."""
    rows, log = out / f"{name}.rows", out / f"{name}.log"
    rows.write_text("")
    begun = monotonic()
    with log.open("w") as words:
        process = subprocess.Popen(
            [sys.executable, str(part.script), shapes, *part.arguments],
            env=environment | {"R2M_GPU_ROWS": str(rows)}, stdout=words, stderr=words, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout=limit)
            failed = "" if process.returncode == 0 else last_words(log) or f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            failed = f"over its limit of {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # what it has started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    measured = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.unlink()
    wrong = next((f"{row['what']}: {row['failed']}" for row in measured if row["failed"]), "")
    failed = failed or wrong or ("" if measured else "it measured nothing")
    return {"seconds": round(monotonic() - begun, 1), "failed": failed, "rows": measured}


def last_words(log: Path) -> str:
    """The last line that is not empty: of a traceback its error."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return said[-1][:300] if said else ""


if __name__ == "__main__":
    main()
