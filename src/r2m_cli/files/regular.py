"""Checks that a path is a regular file: opening a pipe would wait forever, and reading a device might never end."""

import stat
from pathlib import Path

from r2m_cli.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_regular(path: Path) -> None:
    """Check, without opening it, that `path` is a regular file or a link to one, or does not exist.

    Raises:
        UserError: it is a folder, pipe, socket or device, or its type cannot be determined.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # a link to itself, a name that is too long or contains a null byte
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({why}); check the path") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"{path}: not a regular file but {kind}; put a file there, or choose another path")
