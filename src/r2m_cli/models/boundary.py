"""Where the files of other people are read by libraries of other people: whatever fails there is one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from r2m_cli.errors import UserError

LONGEST = 300  # characters of a library's own words


@contextmanager
def foreign(where: str, what: str) -> Iterator[None]:
    """Turn every error of the block into a UserError that begins with `where` and `what`.

    Only for blocks that do nothing but call a library on a file or model that a person has named: our own faults must
    keep their tracebacks.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a config.json can make transformers raise anything
        raise UserError(f"{where}: {what}: {reason_of(error)}") from error
    except BaseException as error:  # a panic of the Rust in `tokenizers` or `safetensors` is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: {what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """What an error says, as one line of bounded length; with its type where the words alone say little."""
    said = " ".join(str(error).split())
    if len(said) > LONGEST:
        said = said[:LONGEST] + " ..."
    if isinstance(error, OSError | ValueError | RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
