"""Free text on the command line arrives as it was typed: in every path key, whatever signs are in it."""

import string
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from r2m_cli.cli.quoting import PATHS, check_signs, quoted
from r2m_cli.config.check import keys
from r2m_cli.config.schema import Config, ReportConfig
from r2m_cli.errors import UserError
from r2m_cli.files import jobs  # noqa: F401  registers the names of the run folders

NAMES = ["données.jsonl", "O'Brien.jsonl", "a(1).jsonl", "a=b.jsonl", "a,b.jsonl", "[x].jsonl", "{x}.jsonl", "a:b", "a#b", "a b",
         'q"q', "$x", "%s", "日本", "a\\", "it's \"x\"", "true", "1e5", "1_000", "007", "a;b&c", "a|b", "multirun/x/0_m=r,b=0.1"]  # fmt: skip


def arrives(*overrides: str, word: str = "train", sweeps: bool = False) -> OmegaConf:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="report_schema", node=ReportConfig)
    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        return compose(word, [quoted(text, sweeps) for text in overrides], return_hydra_config=True)


SINGLE = [key for key in PATHS if key in keys() and key not in ("reward.paths", "runs")]
HYDRA = [key for key in PATHS if key.startswith("hydra.")]


@pytest.mark.parametrize("there", [True, False])
def test_every_path_key_takes_every_name(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key composed with some of the names, and each name read for some of the keys; parsed, all with all."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES if there else []:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    parser = OverridesParser.create()
    for name in NAMES:
        assert len({quoted(f"{key}={name}", sweeps=False).removeprefix(key) for key in (*SINGLE, *HYDRA)}) == 1
        assert parser.parse_override(quoted(f"data.path={name}", sweeps=False)).value() == name
    for turn in range(3):
        given_ = {key: NAMES[(7 * turn + place) % len(NAMES)] for place, key in enumerate((*SINGLE, *HYDRA))}
        listed = [name for name in NAMES if there or "," not in name]
        lists = [f"{key}=[{','.join(['x', *listed, 'y'])}]" for key in ("reward.paths", "runs")]
        found = arrives(*(f"{key}={name}" for key, name in given_.items()), *lists)
        for key, name in given_.items():
            assert OmegaConf.select(found, key) == name, key
        assert found.reward.paths == found.runs == ["x", *listed, "y"]
    assert arrives("out=a (1).html", word="report").out == "a (1).html"


@settings(max_examples=15, deadline=None)
@given(st.text(st.sampled_from(string.printable[:95] + "éß日🙂"), min_size=1, max_size=12))
def test_any_text_arrives(text: str) -> None:
    if text.lower() == "null" or "${" in text or text in ("'", '"') or text[0] in "'\"~":
        return
    assert arrives(f"logger.project={text}").logger.project == text


@pytest.mark.parametrize(
    ("override", "becomes"),
    [
        ("data.path=null", "data.path=null"),
        ("data.path='a b'", "data.path='a b'"),
        ("hydra.run.dir=out/${seed}", "hydra.run.dir='out/${seed}'"),
        ("ppo.beta=0.1,0.2", "ppo.beta=0.1,0.2"),
        ("data.path=a b,c", "data.path='a b',c"),
        ("data.path='x,y',c", "data.path='x,y',c"),
        ("data.path=choice(a,b)", "data.path=choice(a,b)"),
        ("hydra.sweep.dir=a,b", "hydra.sweep.dir='a,b'"),
        ("+experiment=a,b", "+experiment=a,b"),
        ("ppo=5", "ppo='5'"),
        ("seed", "seed"),
    ],
)
def test_what_keeps_its_meaning_in_a_sweep(override: str, becomes: str) -> None:
    assert quoted(override, sweeps=True) == becomes


def test_a_comma_is_part_of_a_name_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert quoted("data.path=a,b", sweeps=False) == "data.path='a,b'"  # perhaps a typo, but one name
    Path("a").touch()
    Path("b").touch()
    assert quoted("data.path=a,b", sweeps=False) == "data.path=a,b"  # Hydra says that it needs -m
    Path("a,b").touch()
    assert quoted("data.path=a,b", sweeps=True) == "data.path='a,b'"
    assert quoted("runs=[b,a,b]", sweeps=False) == "runs=[b,'a,b']"
    Path("x, (y)").touch()
    assert quoted("runs=[ b , x, (y)]", sweeps=False) == "runs=[b,'x, (y)']"


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/Müller")
    assert quoted("data.path=~/x", sweeps=False) == "data.path='/home/Müller/x'"
    assert quoted("data.path=~nobody-here/x", sweeps=False) == "data.path='./~nobody-here/x'"
    Path("~x").touch()
    assert quoted("data.path=~x", sweeps=False) == "data.path='./~x'"


@pytest.mark.parametrize("text", ["data.path=donn\udce9es", "seed=1\x00", "data.path=a\nb", "\ud83d"])
def test_signs_that_no_terminal_shows_are_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        check_signs([text])
    assert "\n" not in str(error.value)
    str(error.value).encode()
