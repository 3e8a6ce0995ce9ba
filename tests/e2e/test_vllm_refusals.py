"""What `rollout.engine=vllm` cannot do is said in one line, with vLLM and without."""

import importlib.util

import pytest


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_package_is_one_line(r2m):
    error = r2m("train", "rollout.engine=vllm", code=2).stderr
    assert "rollout.engine=vllm: the package vllm is not installed; pip install 'r2m[vllm]'" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["rollout.engine=other"], "rollout.engine=other"),
        (["+rollout.vllm.max_num_seqs=4"], "rollout.vllm: needs rollout.engine=vllm"),
        (["rollout.engine=vllm", "rollout.temperature=0.005"], "vLLM samples no colder than 0.01"),
        (["rollout.is_cap=0"], "rollout.is_cap=0: must be above 0"),
    ],
)
def test_what_does_not_go_together_is_one_line(r2m, keys, said):
    error = r2m("train", *keys, code=2).stderr
    assert said in error
    assert "Traceback" not in error
