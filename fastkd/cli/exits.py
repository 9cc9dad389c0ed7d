"""Exit codes: 0 done, 2 the user can mend it (one line says what), 130 interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from loaders.errors import UserError


def exit_code(prog: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
