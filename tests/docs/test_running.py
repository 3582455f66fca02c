"""The pages for those who run it are true: deploying, brokers, databases, tenants."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import VERSION, Celery
from celery.app.defaults import DEFAULTS
from celery.bin.control import inspect
from celery.bin.worker import worker as worker_command
from django.core.management import get_commands
from django.db import connections
from django.db.models.signals import m2m_changed
from django.db.utils import ConnectionHandler
from django.dispatch import Signal
from django.test import override_settings
from kombu.transport import redis as redis_transport

from django_celery_signals import Relay, context, deliveries, receiver_task, register_context
from django_celery_signals.conf import Settings
from django_celery_signals.durable import bulk, probe, relay, upkeep
from django_celery_signals.durable import deliveries as statements
from django_celery_signals.durable.relay import keeping
from django_celery_signals.durable.rows import State
from django_celery_signals.management.commands.signals import Command
from django_celery_signals.observing import prometheus
from django_celery_signals.operating import standing
from django_celery_signals.statistics import flushing
from tests.brokers import Broker
from tests.docs.pages import block_with, page_of
from tests.drain import drain
from tests.durable_tasks import connected_to, effects, place, stay_inside
from tests.elsewhere import execute
from tests.parameters import needs
from tests.processes import Process, Processes
from tests.receiving import Receiving
from tests.scene import Scene, each_pair
from tests.shop.models import Customer, Order, Tag
from tests.waiting import wait_until

DEPLOYING = page_of("docs/deploying.md")
BROKERS = page_of("docs/brokers.md")
DATABASES = page_of("docs/databases.md")
TENANTS = page_of("docs/tenants.md")
UPGRADING = page_of("docs/upgrading.md")

bell = Signal()


def of_language(text: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def documents(words: str) -> list[Any]:
    """Return what a YAML block of the page about deploying holds, which has these words in it."""
    (found,) = [block for block in of_language(DEPLOYING, "yaml") if words in block]
    return list(yaml.safe_load_all(found))


# Commands ------------------------------------------------------------------------------------------------------------


def words_of(name: str) -> list[str]:
    """Return the options of a word of ``manage.py signals``."""
    parser = Command().create_parser("manage.py", "signals")
    (words,) = [action for action in parser._actions if action.dest == "word"]
    return [option for action in words.choices[name]._actions for option in action.option_strings]  # type: ignore[index]


def known_options(program: str, arguments: list[str]) -> list[str]:
    """Return the options that a command of a page may have; it fails for a command that does not exist."""
    if program == "celery":
        assert ["-A", "proj"] == arguments[:2]
        commands = {"worker": worker_command, "inspect": inspect}
        return ["-A", *(option for one in commands[arguments[2]].params for option in one.opts)]
    assert ("python", "manage.py") == (program, arguments[0])
    assert arguments[1] in get_commands()
    return words_of(arguments[2]) if arguments[1] == "signals" else []


def check_command(command: list[str]) -> None:
    """Assert that a command of ours exists, with each of its options."""
    program, arguments = Path(command[0]).name, command[1:]
    known = known_options(program, arguments)
    assert [] == [one for one in arguments if one.startswith("-") and one.partition("=")[0] not in known]


COMMANDS = re.findall(
    r"`manage\.py (signals [a-z-]+[^`…]*)`", "".join([DEPLOYING, BROKERS, DATABASES, TENANTS]).replace("\n", " ")
)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands(command: str) -> None:
    """Every word of ``manage.py signals`` that the pages name exists, with the options they give it."""
    check_command(["python", "manage.py", *shlex.split(command)])


# systemd -------------------------------------------------------------------------------------------------------------


def units() -> dict[str, str]:
    """Return the units of the page by their names."""
    return {re.findall(r"system/([\w.-]+)", text)[0]: text for text in of_language(DEPLOYING, "ini")}


@pytest.mark.parametrize("name", ["shop-worker.service", "shop-relay.service"])
def test_units(name: str, tmp_path: Path) -> None:
    """A unit runs what exists, and systemd has no objection, where it is there to be asked."""
    text = units()[name]
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)

    assert ["Unit", "Service", "Install"] == unit.sections()
    check_command(shlex.split(unit["Service"]["ExecStart"]))
    assert "always" == unit["Service"]["Restart"]
    if name == "shop-worker.service":
        assert ("mixed", "600") == (unit["Service"]["KillMode"], unit["Service"]["TimeoutStopSec"])
        assert unit["Service"]["ExecStart"].endswith("@%%h")  # systemd's own %h is a home
    if shutil.which("systemd-analyze"):
        file = tmp_path / name
        file.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", text))
        found = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
        assert [] == [line for line in found.stderr.splitlines() if name in line]


# Containers ----------------------------------------------------------------------------------------------------------


def test_compose(tmp_path: Path) -> None:
    """The Compose file is one: its commands and what a service waits for exist, and the relay's health is status."""
    (file,) = documents("services:")
    services = file["services"]
    own = {name: one for name, one in services.items() if "build" in one}

    assert {"migrate", "web", "worker", "relay"} == own.keys()
    for name in ("migrate", "worker", "relay"):
        check_command(own[name]["command"])
    for one in services.values():
        for other, how in one.get("depends_on", {}).items():
            assert other in services
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
    kind, *health = own["relay"]["healthcheck"]["test"]
    assert "CMD" == kind
    check_command(health)
    assert {"signals", "status", "--check"} < set(health)
    assert set(services["postgres"]["volumes"][0].split(":")[:1]) == set(file["volumes"])
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        (tmp_path / "compose.yaml").write_text(yaml.safe_dump(file))
        command = ["docker", "compose", "--project-directory", str(tmp_path), "config", "--quiet"]
        assert 0 == subprocess.run(command, cwd=tmp_path).returncode


def test_kubernetes() -> None:
    """The manifests have a Job and two Deployments whose pods are theirs, without probes, and with time to end."""
    job, *deployments = documents("kind: Deployment")

    assert ("Job", "Never") == (job["kind"], job["spec"]["template"]["spec"]["restartPolicy"])
    assert ["shop-worker", "shop-relay"] == [one["metadata"]["name"] for one in deployments]
    for one in (job, *deployments):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        check_command(container["command"])
        assert not {"livenessProbe", "readinessProbe"} & container.keys()
    for one in deployments:
        assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30
    (probed,) = documents("livenessProbe")
    shell, flag, line = probed["livenessProbe"]["exec"]["command"]
    assert ("sh", "-c") == (shell, flag)
    check_command(shlex.split(line))


def test_scaling() -> None:
    """What scales workers asks for a metric that there is."""
    (scaled,) = documents("kind: ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    names = {family.name for family in prometheus.Deliveries().describe()}

    assert set(re.findall(r"django_celery_signals_\w+", trigger["metadata"]["query"])) <= names
    assert set(re.findall(r"`(django_celery_signals_\w+)`", DEPLOYING)) <= names


# What is told of the library's own times -----------------------------------------------------------------------------


FIGURES = {
    "it looks about every second": (Relay.__init__.__kwdefaults__["idle"], 1.0),
    "`LEASE` (25 s)": (Settings().LEASE, 25.0),
    "| every 5 s |": (upkeep.STRAYS_EVERY, 5.0),
    "every second; every 10 s": ((upkeep.PAUSES_EVERY, upkeep.PURGE_EVERY), (1.0, 10.0)),
    "about every 20 s, and at its end": (flushing.EVERY, 20.0),
    "the fifth fails the delivery": (statements.CRASH_BUDGET, 5),
    "off by a minute, 60 times": ((upkeep.UNKNOWN_TRIES, upkeep.UNKNOWN_WAIT), (60, 60.0)),
    "1, 2, 4, … at most 10 seconds": (relay.LONGEST_PAUSE, 10.0),
    "only after 15 minutes": (statements.UNPROBED_AFTER, 900.0),
    "tries again every 5 seconds": (relay.SOON, 5.0),
    "a full queue is tried again every 5 seconds": (relay.SOON, 5.0),
    "closes after 20 seconds without work": (bulk.IDLE, 20.0),
    "`FAILED_PAYLOAD_DAYS` (30)": (Settings().FAILED_PAYLOAD_DAYS, 30.0),
    "`STATISTICS_DAYS` (7)": (Settings().STATISTICS_DAYS, 7.0),
    "`MAX_ENVELOPE_BYTES` (8 MB)": (Settings().MAX_ENVELOPE_BYTES, 8 * 1024 * 1024),
    "--max-lag 60": (standing.MAX_LAG, 60.0),
    "within half a minute": (probe.OLD + probe.EVERY + probe.SETTLED, 25.0),
}


@pytest.mark.parametrize("words", FIGURES)
def test_figures(words: str) -> None:
    """The times and numbers that the pages tell are the library's."""
    pages = " ".join(" ".join([DEPLOYING, BROKERS, DATABASES, UPGRADING]).split())
    found, told = FIGURES[words]

    assert words in pages
    assert told == found


# Stopping a worker ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(alias: str, broker: Broker, processes: Processes, tmp_path: Path) -> Scene:
    """What ``@each_pair`` names, and the processes that see it."""
    return Scene(alias=alias, broker=broker, processes=processes, folder=tmp_path)


def busy(scene: Scene, **options: Any) -> tuple[Process, Path]:
    """Return a worker in the middle of a receiver, and the file by which that ends."""
    end = scene.folder / "end"
    worker = scene.worker(pool="prefork", **options)
    with connected_to(stay_inside):
        place(scene.alias, [str(end)])
    wait_until(lambda: scene.reports.of("stay_inside"), what="the receiver")
    return worker, end


STOPS: dict[str, dict[str, Any]] = {
    "quit": {"number": signal.SIGQUIT},
    "soft": {"number": signal.SIGQUIT, "soft": 1.0},
    "group": {"number": signal.SIGTERM, "group": True},
    "remapped": {"number": signal.SIGTERM, "env": {"REMAP_SIGTERM": "SIGQUIT"}},
}


@each_pair(("postgres", "redis"))
@pytest.mark.parametrize("how", ["warm", "soft and in time", *STOPS])
def test_stopping_a_worker(scene: Scene, how: str) -> None:
    """A worker that is sent SIGTERM finishes what runs; what is cut off begins again at once, and counts as a crash."""
    stop = STOPS.get(how, {"number": signal.SIGTERM if how == "warm" else signal.SIGQUIT})
    soft = 30.0 if how == "soft and in time" else stop.get("soft", 0.0)
    scene.celery = {"worker_soft_shutdown_timeout": soft}
    worker, end = busy(scene, env=stop.get("env"), LEASE=3600)
    (os.killpg if stop.get("group") else os.kill)(worker.pid, stop["number"])

    if how in ("warm", "soft and in time"):
        wait_until(lambda: "shutdown" in worker.log.lower(), what="the signal")
        end.touch()
        worker.wait(timeout=60)
        assert ({f"stay_inside {end}"[:50]: 1}, 0) == (effects(scene.alias), deliveries(scene.alias).count())
        return
    worker.wait(timeout=60)
    row = deliveries(scene.alias).get()
    assert (State.RUNNING, 0, {}) == (row.state, row.crashes, effects(scene.alias))
    assert (1, []) == deliveries(scene.alias).expire(10)  # a lease of an hour, and it is over
    assert (State.READY, 1) == deliveries(scene.alias).values_list("state", "crashes").get()


# Brokers -------------------------------------------------------------------------------------------------------------


def test_settings_of_celery() -> None:
    """Every setting of Celery's that the page about brokers explains is one."""
    first = re.findall(r"^\| (`(?:task|worker|broker|accept)_.*?) \|", BROKERS, re.MULTILINE)
    named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]

    assert len(named) > 15
    assert [] == [name for name in named if name not in DEFAULTS]


def celery_of(code: Mapping[str, Any]) -> Celery:
    """Return an app with settings of a project, as its celery.py makes one."""
    app = Celery("page", set_as_current=False)
    app.config_from_object({name: value for name, value in code.items() if name.isupper()}, namespace="CELERY")
    return app


def test_redis_block(page: Any) -> None:
    """The transport's options that the page gives Redis are known to it, and are in force."""
    app = celery_of(page(block_with(BROKERS, "redis://redis.internal"), "proj.settings"))
    options = app.conf.broker_transport_options

    assert {"global_keyprefix", "socket_keepalive", "health_check_interval"} == options.keys()
    assert options.keys() <= set(redis_transport.Channel.from_transport_options)
    assert app.conf.broker_connection_retry_on_startup is True
    assert ("unacked", "unacked_index", 3600) == (
        *(redis_transport.Channel.unacked_key, redis_transport.Channel.unacked_index_key),
        redis_transport.Channel.visibility_timeout,
    )


def test_rabbitmq_block(page: Any) -> None:
    """Queues are quorum queues with the settings of the page, and both hosts are known."""
    app = celery_of(page(block_with(BROKERS, "amqp://shop"), "proj.settings"))

    assert {"x-queue-type": "quorum"} == app.amqp.queues["celery"].queue_arguments
    if VERSION >= (5, 6):
        assert {"x-queue-type": "quorum"} == app.amqp.queues["mail"].queue_arguments
    assert 2 == len(app.connection_for_write().alt)


# Databases -----------------------------------------------------------------------------------------------------------


@contextmanager
def connected(settings: Any, alias: str = "default", **changes: Any) -> Iterator[Any]:
    """Connect by a page's settings to the address of one of the tests' databases, or to a file."""
    here = connections[alias].settings_dict
    place = {name: here[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")}
    handler = ConnectionHandler({"default": {}, alias: {**settings["default"], **place, **changes}})
    try:
        yield handler[alias]
    finally:
        handler[alias].close()


@needs("postgres")
@pytest.mark.django_db(databases=["postgres"])
def test_postgresql_block(page: Any) -> None:
    """PostgreSQL's client takes the options of the page, and keeps them."""
    code = page(block_with(DATABASES, "tcp_user_timeout"), "proj.settings")

    with connected(code["DATABASES"], "postgres") as connection:
        connection.ensure_connection()
        known = connection.connection.info.get_parameters()
        assert connection.connection.prepare_threshold is None
    assert ("5", "20000", "30") == tuple(known[name] for name in code["DATABASES"]["default"]["OPTIONS"])


@needs("postgres")
@pytest.mark.django_db(databases=["postgres"])
def test_pgbouncer_block(page: Any) -> None:
    """With the page's settings no cursor is kept in the server, and no statement is prepared there."""
    code = page(block_with(DATABASES, "pgbouncer.internal"), "proj.settings")

    with connected(code["DATABASES"], "postgres") as connection:
        connection.ensure_connection()
        assert connection.connection.prepare_threshold is None
        assert connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] is True
        assert "options" not in connection.settings_dict["OPTIONS"]


def test_pool_block(page: Any) -> None:
    """Django's pool wants connections that do not grow old, and Celery's worker is told to keep them."""
    code = page(block_with(DATABASES, "min_size"), "proj.settings")
    assert (0, 1000) == (code["DATABASES"]["default"]["CONN_MAX_AGE"], code["CELERY_DB_REUSE_MAX"])
    assert 1000 == celery_of(code).conf.get("CELERY_DB_REUSE_MAX")


@pytest.mark.django_db
def test_sqlite_block(page: Any, tmp_path: Path) -> None:
    """SQLite writes ahead, and its transactions begin with the lock, by the settings of the page."""
    code = page(block_with(DATABASES, "journal_mode=WAL"), "proj.settings")

    with connected(code["DATABASES"], NAME=str(tmp_path / "db.sqlite3")) as connection, connection.cursor() as cursor:
        assert ("wal",) == cursor.execute("PRAGMA journal_mode").fetchone()
        assert "IMMEDIATE" == connection.transaction_mode


@needs("postgres")
@pytest.mark.django_db(databases=["postgres"])
def test_vacuum_block() -> None:
    """The statement for autovacuum is executed."""
    (statement,) = of_language(DATABASES, "sql")
    execute("postgres", statement)

    ((options,),) = execute(
        "postgres", "SELECT reloptions FROM pg_class WHERE oid = 'django_celery_signals_delivery'::regclass"
    )
    assert "autovacuum_vacuum_scale_factor=0.02" in options


def test_router_block(page: Any) -> None:
    """The databases that a router says no for keep no deliveries, so no relay asks them."""
    deliveries_only = page(block_with(DATABASES, "class Deliveries"), "shop.routers")["Deliveries"]
    assert {"default", "other"} <= set(keeping())

    with override_settings(DATABASE_ROUTERS=[deliveries_only()]):
        assert ["default"] == keeping()


class Replicas:
    """A router that reads elsewhere than it writes."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, *objects: Any, **hints: Any) -> bool:
        return True


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@override_settings(DATABASE_ROUTERS=[Replicas()])
def test_replica_block(page: Any, celery_app: Celery, receiving: Receiving) -> None:
    """What the sender has read from a replica is fetched there; read from the primary, it is fetched from that."""
    tag_order = page(block_with(DATABASES, "def tag_order"), "shop.tagging")["tag_order"]
    seen: list[str] = []
    receiving([bell, m2m_changed], lambda instance: seen.append(instance.status))
    tag = Tag.objects.create(name="gift")
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"), status="paid")
    for late in (order.customer, Order(pk=order.pk, customer=order.customer, status="new")):
        late.save_base(using="other", raw=True)

    bell.send(sender=None, instance=Order.objects.get(pk=order.pk))
    Order.objects.get(pk=order.pk).tags.add(tag)
    order.tags.clear()
    tag_order(order.pk, tag)
    assert (7, 0) == (deliveries("default").count(), deliveries("other").count())
    drain(celery_app)

    assert (["new"] * 3, ["paid"] * 4) == (seen[:3], seen[3:])


# Tenants -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is forgotten at its end."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))


@pytest.mark.django_db(transaction=True)
def test_row_tenants(page: Any, carriers: None, celery_app: Celery, receiving: Receiving) -> None:
    """A receiver has the tenant of its sending, never another one, and does not run without."""
    code = page(block_with(TENANTS, "class as_tenant"), "shop.tenants")
    seen: list[Any] = []
    receiving(
        bell,
        lambda event: seen.append((code["tenant_id"].get(None), event.context["tenant"])),
        *(),
        ordered=True,
        key=lambda: "the same",
    )
    for tenant in (7, 8):
        with code["as_tenant"](tenant):
            bell.send(sender=None)
    assert 2 == deliveries("default").values("lane").distinct().count()  # so neither waits for the other
    bell.send(sender=None)
    drain(celery_app)

    assert [(7, 7), (8, 8)] == seen
    assert code["tenant_id"].get(None) is None
    left = deliveries("default").get()
    assert (State.READY, "ContextLost") == (left.state, left.error_type.rpartition(".")[2])


SCHEMAS = ("acme", "bolt")


@pytest.fixture
def schemas() -> Iterator[Any]:
    """Two schemas, each with a table of tags of its own, and what a project does to be in one."""

    def set_path(name: str) -> None:
        execute("postgres", f"SET search_path TO {name}, public" if name != "public" else "SET search_path TO public")
        connections["postgres"].schema_name = name  # type: ignore[attr-defined]

    @contextmanager
    def in_schema(name: str) -> Iterator[None]:
        set_path(name)
        try:
            yield
        finally:
            set_path("public")

    for name in SCHEMAS:
        execute("postgres", f"CREATE SCHEMA {name}")
        execute("postgres", f"CREATE TABLE {name}.shop_tag (LIKE public.shop_tag INCLUDING ALL)")
    set_path("public")
    yield in_schema
    for name in SCHEMAS:
        execute("postgres", f"DROP SCHEMA {name} CASCADE")
    connections["postgres"].close()


@needs("postgres")
@pytest.mark.django_db(transaction=True, databases=["postgres"])
def test_schemas_by_hand(schemas: Any, carriers: None, celery_app: Celery, page: Any) -> None:
    """With the table in the schema that is always on the path, each run is in the schema of its sending."""
    register_context(
        "tenant",
        capture=lambda: connections["postgres"].schema_name,  # type: ignore[attr-defined]
        restore=schemas,
        required=True,
        scope=True,
    )

    @receiver_task(bell, ordered=True, name="shop.page.copy")
    def copy(instance: Tag) -> None:
        Tag.objects.using("postgres").create(name=f"copy of {instance.name}")

    for name in SCHEMAS:
        with schemas(name):
            bell.send(sender=None, instance=Tag.objects.using("postgres").create(name=name))
    assert 2 == deliveries("postgres").values("lane").distinct().count()  # of tags with the same key
    assert [1, 1] == [int(row.summary.rpartition("=")[2].split()[0]) for row in deliveries("postgres")]
    drain(celery_app)

    assert 0 == deliveries("postgres").count()
    found = [execute("postgres", f"SELECT name FROM {name}.shop_tag ORDER BY id") for name in SCHEMAS]
    assert [[(name,), (f"copy of {name}",)] for name in SCHEMAS] == found


def test_tenants_block(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app is in one of the lists of django-tenants only, and installed."""
    code = page(block_with(TENANTS, "SHARED_APPS = "), "proj.settings")
    assert "django_celery_signals" in code["SHARED_APPS"]
    assert "django_celery_signals" not in code["TENANT_APPS"]
    assert len(set(code["INSTALLED_APPS"])) == len(code["INSTALLED_APPS"]) > 4


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_database_tenants(page: Any, carriers: None, celery_app: Celery, receiving: Receiving) -> None:
    """A delivery is in the database of its tenant, and what its receiver asks for by itself is, too."""
    code = page(block_with(TENANTS, "class TenantRouter"), "shop.databases")
    seen: list[Any] = []

    def look(instance: Tag, event: Any) -> None:
        seen.append((event.using, instance._state.db, list(Tag.objects.values_list("name", flat=True))))

    receiving(bell, look)
    with override_settings(DATABASE_ROUTERS=[code["TenantRouter"]()]):
        for alias in ("default", "other"):
            token = code["tenant_db"].set(alias)
            bell.send(sender=None, instance=Tag.objects.create(name=f"of {alias}"))
            code["tenant_db"].reset(token)
        assert [1, 1] == [deliveries(alias).count() for alias in ("default", "other")]
        drain(celery_app)

    assert [(alias, alias, [f"of {alias}"]) for alias in ("default", "other")] == sorted(seen)
