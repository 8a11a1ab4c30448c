"""Text from other parties, made fit for a terminal."""


def printable(text: str) -> str:
    """Return the text without what could control the terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
