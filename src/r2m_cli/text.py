"""How numbers, times, paths and commands are printed: one form everywhere, with the ASCII minus sign."""

import math
import os
import shlex
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

DIGITS = 4  # significant digits of a number of unknown size
LONGEST = 1e15  # from this value on, a number is written with an exponent


def number(value: float, digits: int = DIGITS) -> str:
    """A number of unknown size with `digits` significant digits: 12345.6 -> 12346, 4000.0 -> 4000, 0.25 -> 0.25.

    Integers are written in full; an exponent is used only below 0.0001 and from 1e15 on. Never "-0".
    """
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= LONGEST:
        return f"{value:.{digits}g}"
    if value == int(value) or abs(value) >= 10 ** (digits - 1):
        return str(round(value))
    return f"{value:.{digits}g}"


def fixed(value: float, decimals: int = 2) -> str:
    """A number with `decimals` decimals, for columns and curves; never "-0.00". Huge numbers are written as in `number`."""
    if not math.isfinite(value) or abs(value) >= LONGEST:
        return number(value)
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def from_home(name: str | Path) -> Path:
    """The path with a leading ~ replaced by the home folder.

    An existing file whose name begins with ~, and the ~ of an unknown user, stay as they are. Unlike Path.expanduser it
    keeps `./~name` and raises nothing.
    """
    return Path(name if os.path.lexists(name) else os.path.expanduser(name))


def place(path: Path) -> str:
    """A path as you would type it from the current folder: relative if it lies below it, otherwise absolute."""
    full = Path(os.path.abspath(from_home(path)))
    below = full.is_relative_to(Path.cwd()) and full != Path.cwd()
    name = str(full.relative_to(Path.cwd())) if below else str(full)
    return f"./{name}" if name.startswith("-") else name  # otherwise it would be taken for an option


def command(word: str, overrides: Iterable[str]) -> str:
    """An r2m command that can be pasted into a shell."""
    return shlex.join(["r2m", word, *overrides])
