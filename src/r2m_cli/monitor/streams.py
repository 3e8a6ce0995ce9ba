"""Keeps a run alive when its standard output or error is closed.

The files of a run matter more than its output: when nobody reads the output any more (`r2m train | head -2`, a closed terminal),
it is discarded and the command continues. Every other failure to write, such as a full disk, is still an error.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader; a terminal that was hung up


class _Outlived(io.FileIO):
    """A file descriptor that discards everything once its reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return len(data)


@contextmanager
def outlived() -> Iterator[None]:
    """Wrap stdout and stderr within the block. A closed stream (`>&-`) becomes the null device."""
    kept = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    _open_all()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and _plain(stream)):
            wrapped = _wrapped(stream, number)
            setattr(sys, name, wrapped)
            setattr(sys, f"__{name}__", wrapped)  # code that writes past a live panel uses this one
    try:
        yield
    finally:
        for stream in {id(s): s for s in (sys.stdout, sys.stderr)}.values():
            stream.flush()
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = kept  # type: ignore[misc]


def _open_all() -> None:
    """Open the null device for closed descriptors 0 to 2: otherwise the next file that is opened would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def _plain(stream: Any) -> bool:
    """Whether the stream is the interpreter's own, not a replacement by a test or another tool, or one of these wrappers."""
    return isinstance(stream, io.TextIOWrapper) and type(_raw(stream)) is io.FileIO


def _raw(stream: Any) -> Any:
    return getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED there is no buffer


def _wrapped(stream: Any, number: int) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    raw = _Outlived(number, "w", closefd=False)
    unbuffered = stream is not None and stream.buffer is _raw(stream)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type, unused-ignore]
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",  # a terminal that cannot show a character must not end a run
        line_buffering=number == 2 or os.isatty(number),
        write_through=unbuffered,
    )
