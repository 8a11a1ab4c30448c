"""A text that strangers may have written, made fit for a terminal."""


def printable(text: str) -> str:
    """A text that cannot steer the terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
