"""The over-optimisation study: its runs, through `r2m train -m`, then results.csv.

    python experiments/overoptimisation/study.py quick|choose|final [world=A,B] [seed=0,1,2] [method=A,B] [jobs=2] [out=FOLDER] [key=value ...]

Started again it goes on where it stopped: runs that are done are kept, one that was broken off is resumed. Everything lies
in outputs/study/PHASE. Further key=value go to every run, so that the study can be made with other numbers (in a folder of its
own, out=FOLDER: a run is known by world, method, weight and seed); a world of one's own is a file world/NAME.yaml in a folder named by --config-dir=FOLDER (its full path).
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import results
from omegaconf import OmegaConf

HERE, OUT = Path(__file__).parent, Path("outputs/study")
R2M = str(Path(sys.executable).parent / "r2m")
WORLDS = (
    "strong_frozen", "strong_tuned", "strong_tuned_wide", "strong_frozen_few", "strong_tuned_few", "label_bias", "label_noise",
    "one_class",
)  # fmt: skip
FRONTIER = "0.05"  # a weight which lets the KL pass through 4, 6 and 8 nats
STUDY = ["train.steps=60"]  # of every run
KL_TARGET = 2  # nats that the adaptive weight of `kl_target` holds
# The paper's other baselines and ablations, each a file in conf/method/.
PAPER = (
    "grpo", "grpo_r2m", "remax", "reinforce_pp", "frozen", "noise", "without_bt", "without_gre", "head_only", "pretrained_rm",
)  # fmt: skip
BUDGET = 0.15  # real labels in a run, as a share of the reward model's pairs


@dataclass(frozen=True)
class Method:
    """What a method adds to the world's configuration."""

    overrides: list[str]
    betas: str = (
        ""  # to choose from; a method without takes the weight of `weight_of`, without both it runs at FRONTIER
    )
    weight_of: str = ""
    frontier: bool = False  # also run at FRONTIER in the comparison


def methods(pairs: int, steps: int, tuned: str = "full") -> dict[str, Method]:
    """Name -> method. All but four of PAPER's use RLOO; `rloo` is vanilla.

    Args:
        pairs: The world's labelled pairs; the label budget is a share of them.
        steps: Of a run.
        tuned: The world's reward.fit.parameters.
    """
    grid = "0.05,0.1,0.2,0.4,0.8"
    vanilla, judged = ["+method=rloo"], ["feedback.judge=labeller", f"feedback.judge_pairs={BUDGET * pairs / steps:g}"]
    more_pairs = f"data.pairs={round(pairs * (1 + BUDGET))}"
    # It tunes all of its reward model: where the world's settings are for a head alone, with those of `strong_tuned`.
    fit = ["reward.fit.epochs=6", "reward.fit.lr=3e-3"] if tuned == "head" else []
    own = {"pretrained_rm": [f"data.pairs={2 * pairs}", *fit]}
    return {
        "rloo": Method(vanilla, grid, frontier=True),
        "r2m_safe": Method([*vanilla, "feedback=r2m_safe"], grid, frontier=True),
        "r2m_judged": Method([*vanilla, "feedback=r2m_judged", *judged], grid, frontier=True),
        "own_states": Method(
            [*vanilla, "feedback=r2m_safe", "feedback.source=reward"], weight_of="r2m_safe", frontier=True
        ),
        "reference_states": Method(
            [*vanilla, "feedback=r2m_safe", "feedback.source=reference"], weight_of="r2m_safe", frontier=True
        ),
        "offline_labels": Method([*vanilla, more_pairs], weight_of="rloo"),
        "offline_labels_safe": Method([*vanilla, "feedback=r2m_safe", more_pairs], weight_of="r2m_safe", frontier=True),
        "rloo_r2m": Method(["+method=rloo_r2m"], weight_of="rloo", frontier=True),
        "ensemble": Method(["+method=ensemble"], weight_of="rloo", frontier=True),
        "kl_target": Method([*vanilla, f"ppo.kl_target={KL_TARGET}"]),
        **{name: Method([f"+method={name}", *own.get(name, [])], weight_of="rloo", frontier=True) for name in PAPER},
    }


@dataclass(frozen=True)
class Phase:
    """Which runs a part of the study makes where nothing else is asked for."""

    methods: list[str]
    seeds: str
    worlds: list[str] = field(default_factory=lambda: list(WORLDS))


PHASES = {
    "quick": Phase(["rloo", "r2m_safe"], "0,1", ["one_class", "strong_frozen"]),
    "choose": Phase(["rloo", "r2m_safe", "r2m_judged"], "0,1,2"),
    # Seeds on which nothing was chosen.
    "final": Phase(list(methods(0, 1)), "30,31,32,33,34,35,36,37,38,39"),
}


def main() -> None:
    given = options(sys.argv[2:], __doc__)
    if len(sys.argv) < 2 or sys.argv[1] not in PHASES:
        raise SystemExit(__doc__)
    phase, name = PHASES[sys.argv[1]], sys.argv[1]
    worlds = given.pop("world", ",".join(phase.worlds)).split(",")
    wanted = given.pop("method", ",".join(phase.methods)).split(",")
    seeds, jobs, out = given.pop("seed", phase.seeds), given.pop("jobs", "2"), Path(given.pop("out", OUT))
    further = [f"{key}={value}" for key, value in given.items()]
    missing = 0
    for world in worlds:
        known = methods(*size(world, further))
        if unknown := set(wanted) - set(known):
            raise SystemExit(f"method={','.join(sorted(unknown))}: the choices are {', '.join(known)}")
        for method in wanted:
            weights = betas(name, world, method, known, chosen(out))
            overrides = [f"+world={world}", *known[method].overrides, f"ppo.beta={','.join(weights)}", *STUDY, *further]
            sweep(out / name / world / method, overrides, seeds, jobs)
            missing += len(weights) * len(seeds.split(",")) - finished(out / name / world / method, weights, seeds)
        table = results.write(out / name)
        if name == "choose":
            choose(table, out)
    print(out / name / "results.csv")
    if missing:
        raise SystemExit(f"missing there: {missing}, which failed; the sweeps above name them; start again to go on")


def options(words: list[str], doc: str | None) -> dict[str, str]:
    """key=value words of a command line; anything else is answered by what the script says of itself."""
    if any("=" not in word for word in words):
        raise SystemExit(doc)
    return dict(word.split("=", 1) for word in words)


def finished(folder: Path, weights: list[str], seeds: str) -> int:
    """How many of the runs that were asked for have an end."""
    runs = (OmegaConf.load(path.with_name("config.yaml")) for path in folder.glob("**/summary.json"))
    asked = {(float(weight), int(seed)) for weight in weights for seed in seeds.split(",")}
    return len(asked & {(run.ppo.beta, run.seed) for run in runs})


def size(world: str, further: list[str]) -> tuple[int, int, str]:
    """Labelled pairs, steps and what a world's reward fit tunes, as the command composes it."""
    done = subprocess.run(train("--cfg=job", f"+world={world}", *STUDY, *further), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or done.stdout.strip())
    config: Any = OmegaConf.create(done.stdout)
    return config.data.pairs, config.train.steps, config.reward.fit.parameters


def train(*arguments: str) -> list[str]:
    """`r2m train` with these arguments: overrides and, before them as they must stand, options."""
    return [R2M, "train", *sorted(arguments, key=lambda text: not text.startswith("-"))]


def betas(
    phase: str, world: str, method: str, known: dict[str, Method], best: dict[str, dict[str, float]]
) -> list[str]:
    """The weights to run: the grid while choosing, afterwards the one that was best, and FRONTIER's."""
    entry = known[method]
    if phase == "quick":
        return [FRONTIER, "0.2"]
    if phase == "choose":
        return sorted({FRONTIER, *filter(None, entry.betas.split(","))})
    if not entry.betas and not entry.weight_of:
        return [FRONTIER]
    if world not in best:
        raise SystemExit(f"world={world}: no weight was chosen for it; first: study.py choose world={world}")
    own = str(best[world][entry.weight_of or method])
    return sorted({own, FRONTIER}) if entry.frontier else [own]


def chosen(out: Path) -> dict[str, dict[str, float]]:
    """World -> method -> weight: those of the repository, and above them what `choose` found in `out`."""
    found: dict[str, dict[str, float]] = {}
    for path in (HERE / "chosen.json", out / "choose" / "chosen.json"):
        if path.is_file():
            for world, weights in json.loads(path.read_text()).items():
                found[world] = found.get(world, {}) | weights
    return found


def own_weights(out: Path) -> dict[str, dict[str, float]]:
    """World -> method -> weight, of every method: its own, that of the method it follows, or FRONTIER."""
    return {
        world: {
            name: best[entry.weight_of or name] if entry.betas or entry.weight_of else float(FRONTIER)
            for name, entry in methods(1, 1).items()
            if (entry.weight_of or name) in best or not (entry.betas or entry.weight_of)
        }
        for world, best in chosen(out).items()
    }


def choose(table: pd.DataFrame, out: Path) -> None:
    """chosen.json: the weight of each world and method, by `results.best_beta`."""
    found: dict[str, dict[str, float]] = {}
    for (world, method), runs in table.groupby(["world", "method"]):
        found.setdefault(str(world), {})[str(method)] = results.best_beta(runs)
    (out / "choose" / "chosen.json").write_text(json.dumps(found, indent=2) + "\n")


def sweep(folder: Path, overrides: list[str], seeds: str, jobs: str) -> None:
    """One multirun, `jobs` runs at a time."""
    command = train(
        "-m", *overrides, f"seed={seeds}", "data.seed=${seed}", f"hydra.sweep.dir={folder}", "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={jobs}", "checkpoint.export=false", "logger.samples_every=50",
    )  # fmt: skip
    print(" ".join(command), flush=True)
    subprocess.run(command, check=False)  # what failed is named by the sweep and missing in results.csv


if __name__ == "__main__":
    main()
