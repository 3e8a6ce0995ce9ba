"""How numbers, times, places and commands are written for people: one form everywhere, with the minus of a keyboard."""

import math
import os
import shlex
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

DIGITS = 4  # significant ones of a number whose size nobody knows
LONGEST = 1e15  # from here on a number is written with an exponent


def number(value: float, digits: int = DIGITS) -> str:
    """A number of unknown size with `digits` significant digits: 12345.6 -> 12346, 4000.0 -> 4000, 0.25 -> 0.25.

    Whole numbers are written out; an exponent is left to what is below 0.0001 or not below 1e15. No "-0".
    """
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= LONGEST:
        return f"{value:.{digits}g}"
    if value == int(value) or abs(value) >= 10 ** (digits - 1):
        return str(round(value))
    return f"{value:.{digits}g}"


def fixed(value: float, decimals: int = 2) -> str:
    """A number with so many decimals, for columns and curves; never "-0.00". Huge ones as in `number`."""
    if not math.isfinite(value) or abs(value) >= LONGEST:
        return number(value)
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def clock(seconds: float) -> str:
    """A span of time as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def from_home(name: str | Path) -> Path:
    """A path in which a leading ~ is the home folder; a name that begins so, and the ~ of an unknown user, stay as they are.

    Unlike Path.expanduser it keeps `./~name`, and raises nothing.
    """
    return Path(name if os.path.lexists(name) else os.path.expanduser(name))


def place(path: Path) -> str:
    """A path as one would type it from the current folder: relative if it lies below, else whole."""
    full = Path(os.path.abspath(from_home(path)))
    below = full.is_relative_to(Path.cwd()) and full != Path.cwd()
    name = str(full.relative_to(Path.cwd())) if below else str(full)
    return f"./{name}" if name.startswith("-") else name  # else it would be an option


def command(word: str, overrides: Iterable[str]) -> str:
    """An r2m command that can be pasted into a shell."""
    return shlex.join(["r2m", word, *overrides])
