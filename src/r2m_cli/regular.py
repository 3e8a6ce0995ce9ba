"""Files that may be read: opening a pipe or a device in place of one would wait for ever."""

from pathlib import Path

from r2m_cli.errors import UserError


def require_regular(path: Path) -> None:
    """Raise UserError if there is something at `path` that is no regular file: a folder, a pipe, a socket, a device."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; put the file itself there")
