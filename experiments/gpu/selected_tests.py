"""The fast tests of maths, models, stages and training; where there is a GPU, `engine.device=auto` trains on it.

python experiments/gpu/selected_tests.py paper|tiny
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from rows import row

ROOT = Path(__file__).parents[2]
SELECTED = {
    "paper": ["tests/maths", "tests/models", "tests/stages", "tests/e2e/test_train.py"],
    "tiny": ["tests/maths/test_schedules.py"],
}


def main() -> None:
    """A row for each folder: the number of failed tests, and their names."""
    processes = min(12, (os.cpu_count() or 2) - 2)
    parallel = ["-n", str(processes)] if processes > 1 and find_spec("xdist") else []
    for selected in SELECTED[sys.argv[1]]:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-m",
                "not slow",
                "-p",
                "no:cacheprovider",
                f"--junitxml={report}",
            ]
            done = subprocess.run([*command, *parallel, selected], cwd=ROOT, capture_output=True, text=True)
            print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
            if not report.exists():
                row(selected, failed=f"pytest ended with {done.returncode}: {done.stdout.strip()[-200:]}")
                continue
            cases = list(ElementTree.parse(report).iter("testcase"))
            wrong = [
                case.get("name", "")
                for case in cases
                if case.find("failure") is not None or case.find("error") is not None
            ]
            row(f"{selected}: {len(cases)} tests, failed", len(wrong), failed=", ".join(wrong[:5]))


if __name__ == "__main__":
    main()
