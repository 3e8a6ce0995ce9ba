"""The one exception that a person's input can raise."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where (file:line or config key), and the mend.

    `main` prints it without a traceback and exits with code 2.
    """
