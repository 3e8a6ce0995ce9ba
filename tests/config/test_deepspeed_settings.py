"""Keys of DeepSpeed's own JSON below engine.deepspeed: put over r2m's, and a bad one is one line."""

from dataclasses import replace

import pytest

from r2m_cli.config.schema import EngineConfig
from r2m_cli.distributed.settings import check_settings, deepspeed_config, merged
from r2m_cli.errors import UserError

ZERO = EngineConfig(kind="zero", stage=2)


def test_sections_are_merged_key_by_key_and_the_users_value_counts():
    ours = {"zero_optimization": {"stage": 2, "a": {"b": 1, "c": 2}}, "steps_per_print": 5}
    more = {"zero_optimization": {"a": {"b": 3}, "d": 4}, "wall_clock_breakdown": True}
    assert merged(ours, more) == {
        "zero_optimization": {"stage": 2, "a": {"b": 3, "c": 2}, "d": 4},
        "steps_per_print": 5,
        "wall_clock_breakdown": True,
    }
    assert ours["zero_optimization"] == {"stage": 2, "a": {"b": 1, "c": 2}}  # nothing of ours is changed in place


def test_they_reach_the_large_modules_alone():
    config = replace(ZERO, deepspeed={"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 1000}})
    settings = deepspeed_config(config, max_grad_norm=1.0)
    assert settings["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert settings["gradient_clipping"] == 1.0
    assert deepspeed_config(config, 1.0, small=True)["zero_optimization"] == {"stage": 1}  # adapter and head


@pytest.mark.parametrize(
    "given",
    [
        {"zero_optimization": {"overlap_comm": False}},
        {"zero_optimization": {"offload_param": {"device": "cpu"}}},  # counts at stage 3
        {"communication_data_type": "fp32", "wall_clock_breakdown": True},
        {"comms_logger": {"enabled": True}, "flops_profiler": {"enabled": True}},
        {},
    ],
)
def test_what_deepspeed_knows_passes(given):
    check_settings(replace(ZERO, deepspeed=given))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"zero_optimization": {"overlap": True}}, "engine.deepspeed.zero_optimization.overlap: DeepSpeed has no such key"),
        ({"zero_optimisation": {}}, "engine.deepspeed.zero_optimisation: DeepSpeed has no such key; did you mean zero_optimization?"),
        ({"zero_optimization": {"reduce_bucket_size": "x"}}, "reduce_bucket_size: Input should be a valid integer"),
        ({"zero_optimization": {"offload_param": {"device": "disk"}}}, "offload_param.device: Input should be"),
        ({"zero_optimization": [1]}, "DeepSpeed does not accept it"),
        ({"communication_data_type": "fp17"}, "Invalid communication_data_type"),
        ({"aio": "x"}, "DeepSpeed does not accept it"),
        ({"bf16": {"enabled": True}}, "engine.deepspeed.bf16: r2m sets it itself; use engine.dtype"),
        ({"zero_optimization": {"stage": 1}}, "engine.deepspeed.zero_optimization.stage: r2m sets it itself; use engine.stage"),
        ({"train_batch_size": 8}, "use ppo.prompts_per_step"),
    ],
)  # fmt: skip
def test_what_it_does_not_take_is_one_line(given, line):
    with pytest.raises(UserError) as error:
        check_settings(replace(ZERO, deepspeed=given))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_without_deepspeed_they_have_no_meaning():
    with pytest.raises(UserError, match="needs engine=zero"):
        check_settings(EngineConfig(deepspeed={"zero_optimization": {}}))
