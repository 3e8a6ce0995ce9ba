"""The one exception that a user's input can raise."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where (file:line or config key), and how to fix it.

    `main` prints it without a traceback and exits with code 2. It can always be printed: see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with lone surrogates escaped, because no terminal and no UTF-8 file accepts them.

    They come from JSON ("\\ud83d"), and from file names that are not UTF-8, which Python decodes to surrogates.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
