"""The one exception a user is meant to read: what was asked, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input or a bad environment. The entry points print its one line and exit with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' ; did you mean 'x'?' for the closest known name, or the list of names when none is close."""
    known = sorted(known)
    folded = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean '{folded[close[0]]}'?" if close else f"; known: {', '.join(known)}"
