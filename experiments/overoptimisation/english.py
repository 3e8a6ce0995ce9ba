"""Over-optimisation on real English with a known truth: SmolLM2-135M in the English world, vanilla against `r2m_safe`.

    python experiments/overoptimisation/english.py [seed=0,1,2] [jobs=2] [method=rloo,r2m_safe] [key=value ...]

Started again it goes on. Writes outputs/study/english/results.csv, whose rows are those of the study.
"""

import sys
from pathlib import Path

import results
from study import sweep

OUT = Path("outputs/study/english")
METHODS = {"rloo": ["feedback=none"], "r2m_safe": ["feedback=r2m_safe"]}


def main() -> None:
    given = {"seed": "0,1,2", "jobs": "2", "method": ",".join(METHODS)}
    given |= dict(text.split("=", 1) for text in sys.argv[1:] if "=" in text)
    seeds, jobs, wanted = given.pop("seed"), given.pop("jobs"), given.pop("method").split(",")
    further = [f"{key}={value}" for key, value in given.items()]
    if set(wanted) - set(METHODS) or any("=" not in text for text in sys.argv[1:]):
        raise SystemExit(__doc__)
    for method in wanted:
        sweep(OUT / "english" / method, ["+experiment=english", *METHODS[method], *further], seeds, jobs)
    print(results.write(OUT).to_string())


if __name__ == "__main__":
    main()
