"""Errors that are the user's to mend. A launch script prints their one line and exits with status 1, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something outside the program is wrong: the message is one line that says what, where, and what would be right."""


class DataError(UserError):
    """A data set, an image or a data setting is not usable as it is."""


def listed(items, shown: int = 5) -> str:
    """The first few of ``items`` and a count of the rest, on one line: ``a, b, c and 12 more``."""
    items = [" ".join(str(item).split()) for item in items]
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
