"""A contender's process: it is told how many times to do its work, and says what that took.

Run as ``python -m benchmarks.serve module:function``. The function makes ready and returns what does the work so many
times; that returns its figures, or nothing, and then the seconds for each are the figure. A number on standard input
is one turn; its answer is a line of JSON. The collector of garbage works as ever, but past what was made at the start.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from importlib import import_module

from .watch import watch, watch_parts


def main(place: str) -> None:
    """Make ready, and do the work as often as one is told to."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what anyone prints is no answer
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site.settings")
    module, name = place.split(":")
    watch_parts()
    work = getattr(import_module(module), name)()
    gc.collect()
    gc.freeze()
    print(json.dumps({}), file=answers)
    for line in sys.stdin:
        count, timed = int(line), dict[str, float]()
        with watch(timed, count):
            figures = work(count)
        print(json.dumps(figures or timed), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
