"""Keys of earlier versions: one line says what became of each, and an earlier run's configuration is read all the same."""

from pathlib import Path

import pytest
from composition import composed
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from r2m_cli.cli.explain import explain_composition
from r2m_cli.cli.help import explained
from r2m_cli.config.check import keys, typed
from r2m_cli.config.old_keys import GONE, LABELLERS, RENAMED, REQUIRED, translated, what_became_of
from r2m_cli.data.english_world import EnglishWorld
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.errors import UserError

# What every run of the version before had in its config.yaml, in parts that have changed since.
BEFORE = {
    "policy": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "fit": {"weight_decay": 0.0}},
    "reward": {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "fit": {"weight_decay": 0.01, "margin": 0.0}},
    "feedback": {"states": "reference", "reads": "both", "scale": "free", "init_scale": 1.0, "judge_select": "first"},
    "ppo": {"std_floor": 0.01, "critic": {"gamma": 1.0}},
    "guard": {"stop_on": "none", "kl": 6.0},
    "data": {
        "kind": "gold",
        "world": {
            **{key.rpartition(".")[2]: value for key, value in REQUIRED.items() if key.startswith("data.world.")},
            "label_bias": 0.15, "label_temperature": 0.3, "label_noise": 0.25,
        },
        "english": {"label_bias": 0.4, "label_temperature": 0.3, "label_noise": 0.0},
    },
    "eval": {"preflight_pairs": 8, "bootstrap": 100},
    "analysis": {"tokens": "response"},
    "judge": {"retries": 4},
    "logger": {"name": None},
}  # fmt: skip


def before(**sections: dict[str, object]) -> dict[str, object]:
    merged = OmegaConf.merge(BEFORE, sections)
    return OmegaConf.to_container(merged)  # type: ignore[return-value]


def test_no_old_key_exists_today_and_every_new_name_does() -> None:
    assert not {*RENAMED, *GONE, *REQUIRED} & {*keys()}
    assert {*RENAMED.values()} <= {*keys()}


@pytest.mark.parametrize("key", [*RENAMED, *(key for key in GONE if key not in ("data.world", "data.english"))])
def test_on_the_command_line_an_old_key_is_one_line(key: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        composed(f"{key}=1")
    assert explain_composition(error.value, [f"{key}=1"]) == what_became_of(key)
    with pytest.raises(UserError) as added:
        composed(f"+{key}=1")
    section = key.rpartition(".")[0]  # of a world's keys the section is gone, which OmegaConf finds out first
    assert str(added.value) in (what_became_of(key), what_became_of(section))
    with pytest.raises(UserError) as asked:
        explained(key)
    assert str(asked.value) == what_became_of(key)


def test_the_line_names_the_new_key() -> None:
    assert what_became_of("feedback.states") == "feedback.states is now called feedback.source"
    assert "policy.size (WIDTHxLAYERSxHEADS, such as 64x2x4)" in str(what_became_of("policy.num_layers"))
    assert "the points of gold are constants" in str(what_became_of("data.world.on_topic"))
    assert what_became_of("feedback.omega") is None


def test_an_earlier_runs_configuration_is_that_of_today() -> None:
    config = typed(OmegaConf.create(translated(before())))
    assert (config.policy.size, config.reward.size) == ("64x2x4", "48x2x4")
    assert (config.feedback.source, config.feedback.features) == ("reference", "both")
    assert config.guard.kl is None
    assert (config.data.label_bias, config.data.label_temperature, config.data.label_noise) == (None, None, 0.25)
    assert config.eval.reward_check_pairs == 8


def test_a_guard_and_the_english_labellers_are_carried_over() -> None:
    config = typed(
        OmegaConf.create(
            translated(before(guard={"stop_on": "kl"}, data={"kind": "english", "english": {"label_bias": 0.7}}))
        )
    )
    assert config.guard.kl == 6.0
    assert (config.data.label_bias, config.data.label_noise) == (0.7, None)


@pytest.mark.parametrize(
    ("section", "changed", "key"),
    [
        ("feedback", {"scale": "rte"}, "feedback.scale"),
        ("ppo", {"critic": {"gamma": 0.9}}, "ppo.critic.gamma"),
        ("data", {"world": {"order": 0.0}}, "data.world"),
    ],
)
def test_what_today_cannot_do_is_refused(section: str, changed: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is no longer a key"):
        typed(OmegaConf.create(translated(before(**{section: changed}))))


def test_todays_configuration_is_left_as_it_is() -> None:
    now = OmegaConf.to_container(OmegaConf.structured(composed("guard.kl=3", "data.label_noise=0.1")))
    assert translated(now) == now  # type: ignore[arg-type]


def test_what_was_a_default_is_what_the_worlds_do() -> None:
    for (_, defaults), world in zip(LABELLERS.values(), (GoldWorld, EnglishWorld), strict=True):
        own = world.LABELLERS
        assert list(defaults.values()) == [own.bias, own.temperature, own.noise]
    points = GoldWorld.POINTS | {
        "max_on_topic": GoldWorld.MAX_ON_TOPIC, "max_polite": GoldWorld.MAX_POLITE, "soft_length": GoldWorld.SOFT_LENGTH,
    }  # fmt: skip
    assert {f"data.world.{name}": value for name, value in points.items()} == {
        key: value for key, value in REQUIRED.items() if key.startswith("data.world.")
    }


def test_a_file_of_ones_own_with_an_old_key_is_named(tmp_path: Path) -> None:
    from r2m_cli.cli.command_line import composed as compose
    from r2m_cli.cli.command_line import prepared

    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nfeedback: {states: reference}\n")
    arguments = prepared(["--config-dir", str(tmp_path), "+experiment=mine"], "train")
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        compose(arguments, "train")
    said = explain_composition(error.value, ["+experiment=mine"])
    assert said == "feedback.states is now called feedback.source (in experiment/mine.yaml)"
