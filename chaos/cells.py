"""What is tested against what: a database, a broker, and receivers with or without a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    database: str
    broker: str
    atomic: bool

    @property
    def name(self) -> str:
        return f"{self.database}-{self.broker}-{'atomic' if self.atomic else 'plain'}"


ALL = [
    *(
        Cell(database=database, broker=broker, atomic=atomic)
        for database, broker, atomic in product(("postgres", "mariadb"), ("rabbitmq", "redis"), (True, False))
    ),
    Cell(database="sqlite", broker="redis", atomic=True),
]
BY_NAME = {cell.name: cell for cell in ALL}
