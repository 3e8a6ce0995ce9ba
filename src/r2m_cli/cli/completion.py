"""Shell completion: Hydra completes overrides; this completes the word before them and the names that `r2m help` explains."""

import os


def with_word(arguments: list[str], words: list[str]) -> list[str]:
    """The arguments, beginning with a word. `r2m -sc install=bash` and the shell's completion queries come without one.

    In a query the shell passes the line typed so far, and the word is removed from it for Hydra. While the word itself is
    being typed, the matching words are printed here and the process exits.
    """
    if arguments[0] not in ("-sc", "--shell-completion", "--shell_completion"):
        return arguments
    line = os.environ.get("COMP_LINE")
    if line is None:
        return ["train", *arguments]
    command, _, typed = line.partition(" ")
    word, space, rest = typed.lstrip().partition(" ")
    if not space:
        print(" ".join(w for w in words if w.startswith(word)))
        raise SystemExit(0)
    if word == "help":
        from r2m_cli.cli.help import names

        print(" ".join(name for name in [*words, *names()] if name.startswith(rest.lstrip())))
        raise SystemExit(0)
    shortened = f"{command} {rest}"
    point = int(os.environ.get("COMP_POINT", len(line))) - (len(line) - len(shortened))
    os.environ |= {"COMP_LINE": shortened, "COMP_POINT": str(max(point, 0))}
    return [word if word in words else "train", *arguments]
