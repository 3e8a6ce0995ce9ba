"""The one exception that a person's input can raise."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where (file:line or config key), and how to fix it.

    `main` prints it without a traceback and exits with code 2. It can always be printed: see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text with lone surrogates escaped, which no terminal or UTF-8 file takes.

    They come from JSON ("\\ud83d") and, as Python reads them, from file names that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
