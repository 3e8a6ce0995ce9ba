"""The share of the card's matrix-multiply rate that each teacher-forced stage reaches.

    python experiments/gpu/rates.py paper|tiny

As in experiments/speed/flops.py. Activations are not recomputed here.
"""

import sys

from common import wait
from flops import matmul_rate, share, stages
from models import one_thread
from rows import attempt, row
from shapes import DEVICE, SHAPES, dtype, folder, keys

ROUNDS = 3


def main() -> None:
    """A row for the yardstick, and one for each stage."""
    one_thread()
    shapes = SHAPES[sys.argv[1]]

    def rate() -> float:
        return matmul_rate(shapes.product, shapes.seconds, device=DEVICE, dtype=dtype(shapes))

    row(f"matrix product {' x '.join(map(str, shapes.product))}, {shapes.dtype}", rate() / 1e12, "TFLOP/s")
    overrides = [*keys(shapes), "engine.gradient_checkpointing=false"]
    for stage, (function, operations) in stages(shapes.work, str(folder(sys.argv[1])), overrides).items():
        with attempt(stage):
            function()
            wait()
            shares = sorted(share(function, operations, rate) for _ in range(ROUNDS))
            row(stage, shares[ROUNDS // 2], "of that")


if __name__ == "__main__":
    main()
