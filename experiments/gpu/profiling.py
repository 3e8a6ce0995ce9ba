"""Where the time goes: the kernels that take longest in decoding and in a forward and backward, by torch's profiler.

    python experiments/gpu/profiling.py paper|tiny

On a GPU the first row of each is the share of the time in which a kernel runs: what is missing is waiting for the host.
"""

import sys
from collections.abc import Callable
from time import perf_counter

from common import wait
from decoding import ways
from flops import stages
from models import one_thread
from rows import attempt, row
from shapes import DEVICE, SHAPES, dtype, folder, keys
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from r2m_cli.models.policy import Policy

TOP = 6


def main() -> None:
    """Rows of each stage."""
    one_thread()
    name = sys.argv[1]
    shapes, models = SHAPES[name], folder(name)
    with attempt("decode"):
        lm = AutoModelForCausalLM.from_pretrained(models / "policy", dtype=dtype(shapes)).to(DEVICE).eval()
        decode = ways(Policy(lm), lm, shapes, shapes.batches[0])["r2m"]
        profiled("decode", lambda: decode(8))
    for stage, (function, _) in stages(shapes.work, str(models), keys(shapes)).items():
        with attempt(stage):
            profiled(stage, function)


def profiled(stage: str, function: Callable[[], object]) -> None:
    """Write the rows of one stage, in percent of its wall time, after a warm-up."""
    function()
    wait()
    cuda = DEVICE == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as measured:
        begun = perf_counter()
        function()
        wait()
        whole = 1e6 * (perf_counter() - begun)
    spent = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in measured.key_averages()
        if event.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU)
    }
    row(f"{stage}: kernels run", 100 * sum(spent.values()) / whole, "%")
    for kernel in sorted(spent, key=spent.__getitem__, reverse=True)[:TOP]:
        row(f"{stage}: {kernel[:60]}", 100 * spent[kernel] / whole, "%")


if __name__ == "__main__":
    main()
