"""Errors that are the user's to mend. A launch script prints their one line and exits with status 1, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something outside the program is wrong: the message is one line that says what, where, and what would be right."""


class DataError(UserError):
    """A data set, an image or a data setting is not usable as it is."""


def listed(items, most: int = 5) -> str:
    """The first few of ``items`` and a count of the rest, on one line: ``a, b, c and 12 more``."""
    items = [" ".join(legible(item).split()) for item in items]
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def legible(item) -> str:
    """``item`` as text that any file and any screen can hold.

    Names of files may have bytes that are no valid text; Python keeps them as lone surrogates, which cannot be written. They
    become ``\\xe9`` here, one escape a byte.
    """
    text = str(item)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
