"""How a part hands over what it has measured: a JSON line per row, in the file that R2M_GPU_ROWS names, else on the terminal."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager


def row(what: str, value: float | None = None, unit: str = "", failed: str = "") -> None:
    """One row of the table.

    Args:
        failed: why there is no value, or why it is wrong.
    """
    with open(os.environ.get("R2M_GPU_ROWS", "/dev/stdout"), "a") as file:
        print(json.dumps({"what": what, "value": value, "unit": unit, "failed": failed}), file=file)


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """What fails inside is a row with its reason, and the part goes on."""
    try:
        yield
    except Exception as error:
        row(what, failed=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
