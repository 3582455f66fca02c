"""A progress bar for a terminal; a few lines anywhere else."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters
REDRAW = 0.1  # seconds


class Progress:
    """How far a piece of work is."""

    def __init__(self, title: str, unit: str) -> None:
        """Begin to measure.

        Args:
            title: what is being done, in a word or two.
            unit: of what it is counted, in the plural.
        """
        self.title, self.unit = title, unit
        self._began, self._drawn, self._quarter = time.monotonic(), 0.0, -1
        self._live = sys.stdout.isatty()

    def show(self, done: int, total: int) -> None:
        """Show how much is done, but not oftener than it can be read."""
        part = min(done / total, 1.0) if total else 1.0
        if self._live and (part == 1.0 or time.monotonic() - self._drawn >= REDRAW):
            self._drawn = time.monotonic()
            print(f"\r{self._line(part, done, total)}\033[K", end="", flush=True)
        elif not self._live and int(part * 4) > self._quarter:
            self._quarter = int(part * 4)
            print(self._line(part, done, total), flush=True)

    def finish(self) -> None:
        """Leave the bar as it is, and go on below it."""
        if self._live:
            print(flush=True)

    def _line(self, part: float, done: int, total: int) -> str:
        bar = "#" * int(part * WIDTH)
        seconds = time.monotonic() - self._began
        return f"{self.title:8} [{bar:{WIDTH}}] {part:4.0%}  {done:,}/{total:,} {self.unit}, {seconds:.0f} s"
