"""Calls of third-party libraries on the user's files: any failure there becomes a one-line error."""

from collections.abc import Iterator
from contextlib import contextmanager

from r2m_cli.errors import UserError

LONGEST = 300  # characters of a library's error message


@contextmanager
def foreign(where: str, what: str) -> Iterator[None]:
    """Turn every error of the block into a UserError that begins with `where` and `what`.

    Only for blocks that do nothing but call a library on a file or model named by the user: our own bugs must keep their
    tracebacks.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a config.json can make transformers raise anything
        raise UserError(f"{where}: {what}: {reason_of(error)}") from error
    except BaseException as error:  # a Rust panic in `tokenizers` or `safetensors` is not an Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: {what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """An error's message as one line of bounded length, with its type if the message alone is not clear."""
    said = " ".join(str(error).split())
    if len(said) > LONGEST:
        said = said[:LONGEST] + " ..."
    if isinstance(error, OSError | ValueError | RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
