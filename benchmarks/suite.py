"""The questions, and how good is good enough; docs/performance.md says why."""

from __future__ import annotations

from chaos.servers import free_port

from .contest import Benchmark, Contender, Goal

_HERE = "benchmarks.contenders."
_SLOWLY = {"library": {"FAST_PATH_LIMIT": 0}}  # leaves the publication to the relay
_CONFIRMED = {"confirm_publish": True}


def _in_memory(site: dict[str, object]) -> list[Contender]:
    """Return ours with messages that RabbitMQ need not keep on its disk; Redis keeps all as its own settings say."""
    place = f"{_HERE}requesting:ours_in_memory"
    return [Contender(name="ours, delivery_mode=1", place=place, site=site)] if site["broker"] == "rabbitmq" else []


def _request(broker: str) -> Benchmark:
    site: dict[str, object] = {"broker": broker}
    return Benchmark(
        title=f"a request's whole extra cost, {broker}",
        contenders=[
            Contender(name="bare save", place=f"{_HERE}requesting:bare", system="plain", site=site),
            Contender(name="by hand", place=f"{_HERE}requesting:by_hand", system="plain", site=site),
            Contender(name="task.delay() at once", place=f"{_HERE}requesting:at_once", system="plain", site=site),
            Contender(name="ours", place=f"{_HERE}requesting:ours", site=site),
            *_in_memory(site),
        ],
        goals=[Goal(of="ours", to="by hand", most=1.0, beyond="bare save")],
        count=200,
        needs=("postgres", broker),
        note="Save an order in a transaction: with nobody listening, with `on_commit(lambda: task.delay(order.pk))`, "
        "with `task.delay(order.pk)` before the commit, with a durable receiver. The goal is about what comes on top "
        "of the save.",
    )


def _relay(broker: str, *peers: Contender) -> Benchmark:
    site = {"broker": broker, **_SLOWLY}
    return Benchmark(
        title=f"relay, {broker}",
        contenders=[
            Contender(name="raw client", place=f"{_HERE}relaying:raw", site=site),
            Contender(name="ours", place=f"{_HERE}relaying:ours", site=site),
            Contender(name="ours, two relays", place=f"{_HERE}relaying:by_two", site=site),
            Contender(name="ours, chunk_size=50", place=f"{_HERE}relaying:in_chunks", site=site),
            *peers,
        ],
        goals=[
            Goal(of="raw client", to="ours", least=0.8 if broker == "rabbitmq" else 0.75),
            *(Goal(of=peer.name, to="ours", least=6.0) for peer in peers[:1]),
        ],
        count=2000,
        needs=("postgres", broker),
        rounds=5,
        note="A backlog of 2,000 rows, every message confirmed on RabbitMQ. The raw client publishes messages that "
        "were made beforehand, and knows no table.",
    )


def _soon(broker: str, pool: str) -> Benchmark:
    worker = ["-P", pool, "-c", "2"]

    def site(**more: object) -> dict[str, object]:
        return {"broker": broker, "teller": free_port(), "worker": worker, **more}

    return Benchmark(
        title=f"from the commit to the receiver, {broker}, {pool}",
        contenders=[
            Contender(name="by hand", place=f"{_HERE}running:soon", system="plain", site=site()),
            Contender(name="ours", place=f"{_HERE}running:soon", site=site()),
        ],
        goals=[
            Goal(of="ours", to="by hand", most=1.3, figure="p50"),
            Goal(of="ours", to="by hand", most=3.0, figure="p99"),
        ],
        count=200,
        needs=("postgres", broker),
        rounds=5,
        note="One save after the other, with a worker that has nothing else to do. Each receiver reads its order.",
    )


def _later() -> Benchmark:
    worker = ["-P", "prefork", "-c", "2"]
    embedded = {"library": {"FAST_PATH_LIMIT": 0, "EMBED_RELAY": True}}
    often = {"library": {"FAST_PATH_LIMIT": 0}, "idle": 0.002, "suffix": "_often"}
    return Benchmark(
        title="from the commit to the receiver, by the relay alone",
        contenders=[
            Contender(
                name="by hand",
                place=f"{_HERE}running:soon",
                system="plain",
                site={"teller": free_port(), "worker": worker},
            ),
            Contender(
                name="ours, without the fast path",
                place=f"{_HERE}running:soon",
                site={"teller": free_port(), "worker": worker, **embedded},
            ),
            Contender(
                name="ours, signals relay --idle 0.002",
                place=f"{_HERE}running:soon",
                site={"teller": free_port(), "worker": worker, **often},
            ),
        ],
        goals=[
            Goal(of="ours, without the fast path", to="by hand", most=2.0, figure="p50"),
            Goal(of="ours, signals relay --idle 0.002", to="by hand", most=2.0, figure="p50"),
        ],
        count=30,
        needs=("postgres", "rabbitmq"),
        rounds=5,
        note="A relay sleeps about a second when nothing is due; here each save comes just when it begins to.",
    )


def _many(broker: str) -> Benchmark:
    worker = ["-P", "solo"]

    def site(**more: object) -> dict[str, object]:
        return {"broker": broker, "teller": free_port(), "worker": worker, **more}

    return Benchmark(
        title=f"a backlog through a worker, {broker}",
        contenders=[
            Contender(name="by hand", place=f"{_HERE}running:many", system="plain", site=site(reuse=None)),
            Contender(name="by hand, tuned", place=f"{_HERE}running:many", system="plain", site=site()),
            Contender(name="ours", place=f"{_HERE}running:many", site=site()),
            Contender(name="ours, chunk_size=50", place=f"{_HERE}running:many", site=site(chunk=50, **_SLOWLY)),
        ],
        goals=[
            Goal(of="ours", to="by hand", most=1.0),
            Goal(of="ours", to="by hand, tuned", most=1.0),
            Goal(of="by hand", to="ours, chunk_size=50", least=8.0),
            Goal(of="by hand, tuned", to="ours, chunk_size=50", least=4.0),
        ],
        count=20_000,
        needs=("postgres", broker),
        rounds=5,
        note="So many orders wait when a worker of one process starts; each receiver reads its order. Tuned: with "
        "`CELERY_DB_REUSE_MAX`, so that the connection to the database is kept; ours has that as well.",
    )


def _send_on(database: str) -> Benchmark:
    def site(name: str) -> dict[str, object]:
        return {"database": database, "suffix": f"_{name}", **_SLOWLY}

    return Benchmark(
        title=f"a durable sending, {database}",
        contenders=[
            Contender(name="raw INSERT", place=f"{_HERE}sending:row_by_row_anywhere", site=site("raw")),
            Contender(name="ours", place=f"{_HERE}sending:ours", site=site("ours")),
        ],
        goals=[],
        count=400,
        needs=(database,) if database != "sqlite" else (),
        note="As on PostgreSQL, in one open transaction. There is no goal: SQLite has no round trip that could hide "
        "Python's work, which is the same.",
    )


_TURNS = ("take_turn", "take_turn, others wait", "next_of", "pass_turn", "followers and fold", "admit")
_CROWDS = {"1,000": {"same": 750, "others": 0}, "600,000": {"same": 100_000, "others": 500_000}}


def _turns() -> Benchmark:
    databases = {"postgres": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
    few, many = _CROWDS
    return Benchmark(
        title="a turn, among few and among many that wait",
        contenders=[
            Contender(
                name=f"{title}, {crowd} wait",
                place=f"{_HERE}turning:turns",
                site={"database": database, "suffix": f"_turns_{rows['same']}", **rows},
            )
            for database, title in databases.items()
            for crowd, rows in _CROWDS.items()
        ],
        goals=[
            Goal(of=f"{title}, {many} wait", to=f"{title}, {few} wait", figure=figure, most=1.2)
            for title in databases.values()
            for figure in _TURNS
        ],
        count=20,
        needs=("postgres", "mariadb"),
        note="Of 600,000 that wait 100,000 have one key, and 500,000 others, ten each; of 1,000, 750 have one. "
        "A sender takes the turn of a key that has nothing else, and in vain that of the youngest of many; a worker "
        "looks for the next, gives it the turn, and folds 500 into it; a relay admits of 500 what may be published. "
        "Each statement alone, in transactions that are taken back.",
    )


SUITE: dict[str, Benchmark] = {
    "message": Benchmark(
        title="build one message",
        contenders=[
            Contender(name="least", place=f"{_HERE}building:least"),
            Contender(name="ours", place=f"{_HERE}building:ours"),
            Contender(name="apply_async", place=f"{_HERE}building:by_apply_async"),
        ],
        goals=[Goal(of="apply_async", to="ours", least=15.0)],
        count=5000,
        needs=("postgres",),
        note="`apply_async()` publishes into a channel that leads nowhere. Ours is equal to its message.",
    ),
    "read": Benchmark(
        title="read a snapshot",
        contenders=[
            Contender(name="least", place=f"{_HERE}reading:least", site={"suffix": "_least"}),
            Contender(name="ours", place=f"{_HERE}reading:ours", site={"suffix": "_ours"}),
        ],
        goals=[],
        count=2000,
        note="An order of six fields, a decimal and a moment among them: with its envelope, and the instance alone. "
        "Least: the JSON, and Django's `from_db()` with ready values. The goal, 10 µs for the instance, was set on "
        "another machine.",
    ),
    "send": Benchmark(
        title="a durable sending: bridge, envelope, INSERT",
        contenders=[
            Contender(name="raw INSERT", place=f"{_HERE}sending:row_by_row", site=_SLOWLY),
            Contender(name="raw INSERT, apart", place=f"{_HERE}sending:row_by_row_apart", site=_SLOWLY),
            Contender(name="ours", place=f"{_HERE}sending:ours", site=_SLOWLY),
            Contender(name="django-celery-outbox", place=f"{_HERE}sending:outbox", system="outbox", peer=True),
            Contender(name="django-domain-events", place=f"{_HERE}sending:events", system="events", peer=True),
            Contender(name="django-jaiminho", place=f"{_HERE}sending:jaiminho", system="jaiminho", peer=True),
        ],
        goals=[
            Goal(of="ours", to="raw INSERT", most=1.6),
            Goal(of="django-celery-outbox", to="ours", least=2.5),
        ],
        count=400,
        note="In one open transaction. The raw INSERT is prepared, and writes the row that ours writes; apart it is "
        "timed alone, with the rest of a sending between two. The peers keep less: none carries a signal's arguments.",
    ),
    "send-mariadb": _send_on("mariadb"),
    "send-sqlite": _send_on("sqlite"),
    "run": Benchmark(
        title="a worker's work on one delivery",
        contenders=[
            Contender(name="Celery alone", place=f"{_HERE}completing:bare", system="plain"),
            Contender(name="two statements", place=f"{_HERE}completing:statements", site=_SLOWLY),
            Contender(name="ours, atomic=False", place=f"{_HERE}completing:ours_without_a_transaction", site=_SLOWLY),
            Contender(name="ours", place=f"{_HERE}completing:ours", site=_SLOWLY),
            Contender(name="ours, chunk_size=50", place=f"{_HERE}completing:ours_together", site=_SLOWLY),
        ],
        goals=[
            Goal(of="ours, atomic=False", to="two statements", most=2.0, beyond="Celery alone"),
            Goal(of="ours, chunk_size=50", to="ours", most=0.25),
        ],
        count=500,
        note="A receiver that does nothing, of a snapshot, run as a worker runs it, without a broker. Two statements: "
        "the prepared UPDATE that opens the row, and the DELETE that completes it. The goal for the round trips, two, "
        "is kept by a test; these ratios are what Python adds.",
    ),
    "bulk": Benchmark(
        title="1,000 durable sendings in batched()",
        contenders=[
            Contender(name="raw INSERT", place=f"{_HERE}sending:row_by_row", site=_SLOWLY),
            Contender(name="ours, one by one", place=f"{_HERE}sending:ours", site=_SLOWLY),
            Contender(name="ours, batched", place=f"{_HERE}sending:ours_batched", site=_SLOWLY),
            Contender(name="bulk_create", place=f"{_HERE}sending:bulk_create", site=_SLOWLY),
            Contender(name="COPY", place=f"{_HERE}sending:copied", site=_SLOWLY),
        ],
        goals=[
            Goal(of="ours, batched", to="raw INSERT", most=0.35),
            Goal(of="ours, batched", to="ours, one by one", most=0.35),
        ],
        count=1000,
        rounds=5,
        note="bulk_create and COPY write rows that were made beforehand; ours makes them of signals, and commits.",
    ),
    "claim": Benchmark(
        title="claim 500 of a backlog",
        contenders=[
            Contender(name=name, place=f"{_HERE}claiming:claims", site={"suffix": f"_{number}", **rows})
            for number, (name, rows) in enumerate(
                {
                    "1,000 rows": {"rows": 1_000},
                    "100,000 rows": {"rows": 100_000},
                    "1,000,000 rows": {"rows": 1_000_000},
                    "100,000 rows behind 500,000 that are not due": {"rows": 100_000, "later": 500_000},
                }.items()
            )
        ],
        goals=[
            Goal(of=name, to="1,000 rows", most=1.2)
            for name in ("100,000 rows", "1,000,000 rows", "100,000 rows behind 500,000 that are not due")
        ],
        count=5,
        rounds=7,
        note="One statement, which also returns what a relay must know of the rows. Taken back each time.",
    ),
    "turns": _turns(),
    "memory": Benchmark(
        title="the relay's memory over a backlog of 1,000,000",
        contenders=[Contender(name="ours", place=f"{_HERE}claiming:memory", site={"broker": "redis", **_SLOWLY})],
        goals=[Goal(of="ours", to="ours", figure="after all", against="after 10,000", most=1.1)],
        count=1_000_000,
        needs=("postgres", "redis"),
        rounds=2,
        unit="MiB",
        note="Resident memory of the process.",
    ),
    "request": _request("rabbitmq"),
    "request-redis": _request("redis"),
    "relay": _relay(
        "rabbitmq",
        Contender(
            name="django-celery-outbox", place=f"{_HERE}relaying:outbox", system="outbox", peer=True, site=_CONFIRMED
        ),
        Contender(
            name="django-celery-outbox, 1,000 each",
            place=f"{_HERE}relaying:outbox_at_its_best",
            system="outbox",
            peer=True,
            site=_CONFIRMED,
        ),
        Contender(
            name="django-jaiminho", place=f"{_HERE}relaying:jaiminho", system="jaiminho", peer=True, site=_CONFIRMED
        ),
    ),
    "relay-redis": _relay("redis"),
    "latency": _soon("rabbitmq", "prefork"),
    "latency-redis": _soon("redis", "prefork"),
    "latency-solo": _soon("rabbitmq", "solo"),
    "latency-threads": _soon("rabbitmq", "threads"),
    "latency-relay": _later(),
    "backlog": _many("rabbitmq"),
    "backlog-redis": _many("redis"),
}
