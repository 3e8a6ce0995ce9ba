"""Numbers, times, places and commands as people read them."""

import math
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_cli.text import clock, command, fixed, from_home, number, place


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4000, "4000"), (4000.0, "4000"), (12345.0, "12345"), (12345.6, "12346"), (999.96, "1000"), (100.04, "100"),
        (1.0, "1"), (0.25, "0.25"), (0.06644, "0.06644"), (1 / 3, "0.3333"), (-2.5, "-2.5"), (-0.0, "0"), (0.0, "0"),
        (1.25e-05, "1.25e-05"), (2e20, "2e+20"), (123456789, "123456789"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_a_number_of_any_size(value: float, text: str) -> None:
    assert number(value) == text


def test_fewer_digits() -> None:
    assert [number(x, 3) for x in (0.61444, 999.6, 99.96, 1234.5)] == ["0.614", "1000", "100", "1234"]


@given(st.floats(-1e14, 1e14))
def test_a_number_keeps_its_value_and_has_no_exponent_unless_it_is_tiny(value: float) -> None:
    text = number(value)
    assert float(text) == pytest.approx(value, rel=5e-4)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text) or abs(value) < 1e-4
    assert text != "-0"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (0.0, "0.00"), (-0.005001, "-0.01"), (1234.5, "1234.50"), (-1.5, "-1.50")]
)
def test_a_fixed_number_has_no_negative_zero(value: float, text: str) -> None:
    assert fixed(value) == text


def test_decimals_of_a_fixed_number() -> None:
    assert (fixed(-0.3, 0), fixed(0.12345, 3), fixed(math.nan), fixed(1e30)) == ("0", "0.123", "nan", "1e+30")


def test_spans_of_time() -> None:
    assert [clock(x) for x in (0.2, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


def test_places_and_commands_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(tmp_path / "outputs" / "a") == "outputs/a"
    assert place(Path("outputs/a")) == "outputs/a"
    assert place(Path("/elsewhere/a")) == "/elsewhere/a"
    assert place(Path("..")) == str(tmp_path.parent)
    line = command("train", ["resume=my runs/it's,seed=0"])
    assert shlex.split(line) == ["r2m", "train", "resume=my runs/it's,seed=0"]


def test_a_tilde_is_the_home_folder_unless_a_name_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    Path("~x").touch()
    names = ("~/a", "~", "~x", "./~y", "~no-such-user-here/a", "a~")
    assert [str(from_home(name)) for name in names] == [
        "/home/me/a",
        "/home/me",
        "~x",
        "~y",
        "~no-such-user-here/a",
        "a~",
    ]
    assert place(Path("-x")) == "./-x"
