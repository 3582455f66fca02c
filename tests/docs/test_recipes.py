"""The recipes that no other page has: each does what the page says of it, and what it calls a mistake is one."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import unittest
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from socket import socket
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.request import urlopen

import pytest
from celery import Celery
from django.contrib.auth import login
from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.cache import SessionStore
from django.core import mail
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.mail import EmailMessage
from django.db import DatabaseError, transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal
from django.forms import Form

from django_celery_signals import EncodeError, NotCarried, context, deliveries, disconnect
from django_celery_signals.durable import saving, writing
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.rows import State
from tests.docs.pages import block_with, page_of
from tests.lanes import Stage
from tests.shop.models import Customer, Document, Order, Receipt, Tag, User

RECIPES = page_of("docs/recipes.md")

USES = 10


# The page ----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_table_has_every_use() -> None:
    """The page begins with the ten uses, in the order in which they stand in it."""
    rows = re.findall(r"^\| (\d+) \| \[.*?\]\(#(.*?)\) \|", RECIPES, re.MULTILINE)
    linked = [anchor for _, anchor in rows]

    assert list(range(1, USES + 1)) == [int(number) for number, _ in rows]
    assert linked == [anchor for anchor in anchors(RECIPES) if anchor in linked]


def test_anchors() -> None:
    """Every link of the page leads to a heading that there is."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", RECIPES)

    assert links
    assert [] == [link for link in links if link[1] not in anchors(page_of(f"docs/{link[0] or 'recipes.md'}"))]


@pytest.mark.parametrize("part", ["When.", "What holds.", "Mistakes."])
def test_every_use_has_its_parts(part: str) -> None:
    """Each of the ten says when it is meant, what holds, and which mistakes are made."""
    uses = re.split(r"^## ", RECIPES, flags=re.MULTILINE)[2 : 2 + USES]

    assert [] == [use.splitlines()[0] for use in uses if f"**{part}**" not in use]


# 1: an e-mail ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_mail(page: Any, stage: Stage) -> None:
    """What is committed is confirmed; a mail that is sent twice has one Message-ID; without an address none is."""
    page(block_with(RECIPES, "def confirm_order("))
    ada = Customer.objects.create(name="Ada", email="ada@example.org")
    with suppress(ZeroDivisionError), transaction.atomic():
        Order.objects.create(customer=ada)
        raise ZeroDivisionError
    order = Order.objects.create(customer=ada)
    order.save()
    send = EmailMessage.send

    def send_and_break(message: EmailMessage) -> None:
        send(message)
        if len(mail.outbox) == 1:
            raise ConnectionResetError

    with patch.object(EmailMessage, "send", send_and_break):
        assert 1 == stage.work()
        assert (1, State.READY) == (len(mail.outbox), stage.rows().get().state)
        assert (1, 1) == (stage.relay_later(), stage.work())

    [first, second] = mail.outbox
    assert first.extra_headers["Message-ID"] == second.extra_headers["Message-ID"] == first.message()["Message-ID"]
    assert (["ada@example.org"], f"Your order {order.pk}", 0) == (second.to, second.subject, stage.rows().count())

    Order.objects.create(customer=Customer.objects.create(name="Bob"))
    assert (1, 2, 0) == (stage.work(), len(mail.outbox), stage.rows().count())


# 2, 8 and 9 are run by test_pages.py -------------------------------------------------------------------------------


# 3: a webhook ------------------------------------------------------------------------------------------------------


@dataclass
class Partner:
    """Another system: notes what it is told, and answers what the test wants."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # then 200
    heard: list[tuple[Message, bytes]] = field(default_factory=list)
    url: str = ""
    ready: threading.Event = field(default_factory=threading.Event)  # to answer

    def hear(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.heard.append((request.headers, body))
        self.ready.wait(20)
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        with suppress(BrokenPipeError, ConnectionResetError):  # of one who did not wait
            request.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                request.send_header(name, value)
            request.end_headers()


@pytest.fixture
def partner(settings: Any) -> Iterator[Partner]:
    partner = Partner()
    partner.ready.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            partner.hear(self)

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    settings.WEBHOOK_URL = partner.url = f"http://127.0.0.1:{server.server_port}/orders"
    settings.WEBHOOK_SECRET = "between us"
    yield partner
    partner.ready.set()
    server.shutdown()
    server.server_close()
    thread.join()


def saved(**values: Any) -> Order:
    return Order.objects.create(customer=Customer.objects.create(name="Ada"), **values)


def due_in(stage: Stage) -> float:
    """Return in how many seconds the only delivery is to run again."""
    row = stage.rows(state=State.READY).annotate(now=In(0)).get()
    return float((row.due_at - row.now).total_seconds())


@pytest.mark.django_db(transaction=True)
def test_webhook(page: Any, partner: Partner, stage: Stage) -> None:
    """The partner is told until it has understood: each time the same, and at the time it asked for."""
    page(block_with(RECIPES, "def tell_partner("), "shop.partners")
    partner.answers += [
        (500, {}),
        (503, {"Retry-After": "120"}),
        (429, {"Retry-After": "Fri, 1 Jan 2100 00:00:00 GMT"}),
    ]
    order = saved()
    waits = []
    for _ in range(3):
        assert 1 == stage.work()
        waits.append(due_in(stage))
        Order.objects.filter(pk=order.pk).update(status="sent")  # which is not what is told
        assert 1 == stage.relay_later()
    assert (1, 0) == (stage.work(), stage.rows().count())

    assert waits[0] <= 1 < 30 < waits[2] <= 60 < waits[1] <= 120
    [told] = {(headers["Idempotency-Key"], headers["X-Signature"], body) for headers, body in partner.heard}
    assert 4 == len(partner.heard)
    assert "sha256=" + hmac.new(b"between us", told[2], hashlib.sha256).hexdigest() == told[1]
    assert {"order": order.pk, "status": "new"}.items() <= json.loads(told[2]).items()
    assert "application/json" == partner.heard[0][0]["Content-Type"]


@pytest.mark.django_db(transaction=True)
def test_webhook_that_is_given_up(page: Any, partner: Partner, stage: Stage) -> None:
    """A refusal is not tried again; somebody is told, and after the repair it goes out under the same key."""
    page(block_with(RECIPES, "def tell_partner("), "shop.partners")
    partner.answers.append((422, {}))
    order = saved()
    order.save()  # has changed no status
    assert 1 == stage.work()

    assert 1 == deliveries("default").failed().count() == stage.rows().count()
    [told] = mail.outbox
    [(headers, _)] = partner.heard
    assert told.body.startswith(f"{headers['Idempotency-Key']}: shop.partners.tell_partner")
    assert "the partner refuses with 422" in told.body

    assert 1 == deliveries("default").failed().retry()
    assert (1, 1, 0) == (stage.relay(), stage.work(), stage.rows().count())
    assert {headers["Idempotency-Key"]} == {heard["Idempotency-Key"] for heard, _ in partner.heard}


@pytest.mark.django_db(transaction=True)
def test_webhook_that_takes_too_long(page: Any, partner: Partner, stage: Stage, settings: Any) -> None:
    """A partner that does not answer, or is not there, is asked again later; the run has its limits."""
    code = page(block_with(RECIPES, "def tell_partner("), "shop.partners")
    patience = []

    def impatient(request: Any, *, timeout: float) -> Any:
        patience.append(timeout)
        return urlopen(request, timeout=0.05)

    partner.ready.clear()
    code["urlopen"] = impatient
    saved()
    assert 1 == stage.work()
    partner.ready.set()
    assert [10] == patience
    assert "TimeoutError" == stage.rows().get().error_type

    with socket() as deaf:  # nobody listens
        deaf.bind(("127.0.0.1", 0))
        settings.WEBHOOK_URL = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        code["urlopen"] = urlopen
        assert (1, 1) == (stage.relay_later(), stage.work())
    assert (2, "urllib.error.URLError") == (stage.rows().get().attempts, stage.rows().get().error_type)

    task = stage.app.tasks["shop.partners.tell_partner"]
    assert (30, 60) == (task.soft_time_limit, task.time_limit)


@pytest.mark.django_db(transaction=True)
def test_webhook_that_is_redirected(page: Any, partner: Partner, stage: Stage) -> None:
    """As the page warns, an address that redirects is asked without the body, and all seems well."""
    page(block_with(RECIPES, "def tell_partner("), "shop.partners")
    partner.answers.append((302, {"Location": partner.url}))
    saved()

    assert (1, 0) == (stage.work(), stage.rows().count())
    assert [True, False] == [bool(body) for _, body in partner.heard]


# 4: files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(settings: Any, tmp_path: Path) -> Any:
    """A function that saves a document with a file of a name."""
    settings.MEDIA_ROOT = str(tmp_path)
    return lambda name: Document.objects.create(file=ContentFile(b"of the document", name=name))


@pytest.mark.django_db(transaction=True)
def test_files(page: Any, stage: Stage, kept: Any) -> None:
    """A file goes with its row, after the commit and however often that is tried, unless another row has it."""
    code = page(block_with(RECIPES, "def remove_file("))
    document = kept("a.txt")
    name = document.file.name
    with suppress(ZeroDivisionError), transaction.atomic():
        document.delete()
        raise ZeroDivisionError
    assert (0, True) == (stage.work(), default_storage.exists(name))

    Document.objects.get().delete()
    assert default_storage.exists(name)
    remove = code["remove"]
    code["remove"] = lambda name: remove(name) or 1 / 0
    assert (1, False) == (stage.work(), default_storage.exists(name))
    del code["remove"]
    code["remove"] = remove
    assert (1, 1, 0) == (stage.relay_later(), stage.work(), stage.rows().count())  # there was nothing to remove


@pytest.mark.django_db(transaction=True)
def test_files_whose_name_comes_back(page: Any, stage: Stage, kept: Any) -> None:
    """A run that is repeated does not take the file of a new row that was given the same name meanwhile."""
    code = page(block_with(RECIPES, "def remove_file("))
    remove = code["remove"]
    kept("a.txt").delete()
    code["remove"] = lambda name: remove(name) or 1 / 0
    assert 1 == stage.work()
    other = kept("a.txt")
    code["remove"] = remove

    assert (1, 1, 0) == (stage.relay_later(), stage.work(), stage.rows().count())
    assert ("documents/a.txt", True) == (other.file.name, default_storage.exists("documents/a.txt"))


@pytest.mark.django_db(transaction=True)
def test_files_that_are_replaced(page: Any, stage: Stage, kept: Any) -> None:
    """A file that a save replaces goes, and the new one stays; of a row without a file nothing is removed."""
    page(block_with(RECIPES, "def remove_file("))
    kept("a.txt")
    document = Document.objects.get()
    document.save()
    assert 0 == stage.work()
    document.file = ContentFile(b"another", name="b.txt")
    document.save()

    assert 1 == stage.work()
    assert (False, True) == (default_storage.exists("documents/a.txt"), default_storage.exists("documents/b.txt"))
    Document.objects.create().delete()
    assert (1, 0) == (stage.work(), stage.rows().count())


@pytest.mark.django_db(transaction=True)
def test_files_by_mistake(page: Any, stage: Stage, kept: Any) -> None:
    """As the page warns, ``file.delete()`` saves the snapshot, and that is refused."""
    stage.receiving(post_delete, lambda instance: instance.file.delete(), sender=Document, atomic=False)
    kept("a.txt").delete()

    assert (1, False) == (stage.work(), default_storage.exists("documents/a.txt"))
    assert stage.rows().get().error_type.endswith("DetachedInstance")


# 5: many-to-many ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_many_to_many(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides of the relation are told as pairs, and what changes nothing is not sent."""
    page(block_with(RECIPES, "def note_tags("))
    order, (a, b) = saved(), [Tag.objects.create(name=name) for name in "ab"]

    def said() -> list[str]:
        stage.work()
        return capsys.readouterr().out.splitlines()

    order.tags.add(a, b)
    assert [f"order {order.pk}: post_add tag {tag.pk}" for tag in (a, b)] == said()
    order.tags.add(a)
    assert 0 == stage.rows().count()
    a.orders.remove(order)
    assert [f"order {order.pk}: post_remove tag {a.pk}"] == said()
    order.tags.remove(a)  # which was not there
    assert [f"order {order.pk}: post_remove tag {a.pk}"] == said()
    a.orders.add(order)
    assert [f"order {order.pk}: post_add tag {a.pk}"] == said()
    order.tags.set([a])
    assert [f"order {order.pk}: post_remove tag {b.pk}"] == said()
    order.tags.clear()
    b.orders.clear()
    assert [f"order {order.pk}: all cleared", f"tag {b.pk}: all cleared"] == said()
    order.tags.set([a, b])
    order.tags.set([])
    assert [
        f"order {order.pk}: {done} tag {tag.pk}" for done in ("post_add", "post_remove") for tag in (a, b)
    ] == said()

    order.tags.add(a)
    assert 1 == len(said())
    order.delete()  # as the page warns
    assert ([], 0) == (said(), stage.rows().count())


# 6: a login --------------------------------------------------------------------------------------------------------


@pytest.fixture
def entering(page: Any, rf: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function by which a user logs in, behind the recipe's middleware."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))
    monkeypatch.setattr(saving, "_told", set())
    code = page(block_with(RECIPES, "def tell_of_login("), "shop.logins")

    def enter(user: User, **headers: str) -> None:
        request = rf.post("/login/", HTTP_USER_AGENT="tests", **headers)
        request.session, request.user = SessionStore(), AnonymousUser()
        log_in = partial(login, user=user, backend="django.contrib.auth.backends.ModelBackend")
        code["remember_client"](log_in)(request)

    return enter


@pytest.mark.django_db(transaction=True)
def test_login(entering: Any, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Who logs in gets a mail that says when, from where and how; outside of a transaction there is a warning."""
    ada = User.objects.create_user("ada", email="ada@example.org")
    entering(ada, HTTP_X_REAL_IP="198.51.100.7")
    assert "outside of a transaction" in caplog.text
    [row] = stage.rows()
    entering(ada)
    assert 2 == stage.work()

    behind, direct = mail.outbox
    assert behind.body.endswith(" UTC, from 198.51.100.7, tests")
    moment = datetime.strptime(behind.body.partition(" UTC")[0], "%d %b %Y %H:%M").replace(tzinfo=UTC)
    assert timedelta(0) <= row.created_at - moment < timedelta(minutes=2)
    assert direct.body.endswith(" UTC, from 127.0.0.1, tests")
    assert ["ada@example.org"] == behind.to
    assert f"<{row.event_id}@shop.example>" == behind.extra_headers["Message-ID"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["session", "COOKIES", "headers", "body"])
def test_login_by_mistake(entering: Any, stage: Stage, name: str) -> None:
    """As the page warns, nothing else of the request is there."""
    seen = []

    def look(request: Any) -> None:
        with pytest.raises(NotCarried):
            getattr(request, name)
        seen.append(sorted(request.META))

    stage.receiving(user_logged_in, look)
    entering(User.objects.create_user("ada"), HTTP_X_REAL_IP="198.51.100.7")

    assert 2 == stage.work()
    assert [["HTTP_USER_AGENT", "REMOTE_ADDR"]] == seen


# 7: a signal of one's own ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_own_signal(page: Any, stage: Stage) -> None:
    """A payment that is committed has one receipt, whatever happens to its run; one that is rolled back has none."""
    code = page(block_with(RECIPES, "def write_receipt("), "shop.payments")
    order = saved()
    with suppress(ZeroDivisionError), transaction.atomic():
        code["pay"](order, Decimal("7.50"))
        raise ZeroDivisionError
    assert (0, "new") == (stage.rows().count(), Order.objects.get().status)

    code["pay"](order, Decimal("7.50"))
    assert (1, "paid") == (stage.rows().count(), Order.objects.get().status)
    create = Receipt.objects.create
    with patch.object(Receipt.objects, "create", lambda **values: create(**values) and 1 / 0):
        assert (1, 0) == (stage.work(), Receipt.objects.count())
    assert (1, 1, 0) == (stage.relay_later(), stage.work(), stage.rows().count())
    assert f"{order.pk}: 7.50" == Receipt.objects.get().number


@pytest.mark.django_db(transaction=True)
def test_own_signal_by_mistake(page: Any, stage: Stage, settings: Any) -> None:
    """As the page warns, answers are None, and what cannot travel is a stand-in, or under STRICT an error."""
    bell, seen = Signal(), []
    stage.receiving(bell, lambda thing: seen.append(repr(thing)))
    things = [Form(), Order.objects.all(), StringIO()]
    with transaction.atomic():
        answers = [bell.send(sender=None, thing=thing) for thing in things]
    assert [[None]] * 3 == [[answer for _, answer in each] for each in answers]
    assert 3 == stage.work()
    assert [] == [text for text in seen if not text.startswith("<Unavailable ")]

    settings.DJANGO_CELERY_SIGNALS = {"STRICT": True}
    for thing in things:
        with pytest.raises(EncodeError):
            bell.send(sender=None, thing=thing)


@pytest.mark.django_db(transaction=True)
def test_own_signal_that_is_sent_robustly(page: Any, stage: Stage) -> None:
    """As the page warns, ``send_robust()`` hides that the delivery, and with it the payment, could not be written."""
    code = page(block_with(RECIPES, "def write_receipt("), "shop.payments")
    order, paid = saved(), code["paid"]
    with patch.object(writing, "_in_rows", lambda *args: ("INSERT INTO shop_nowhere DEFAULT VALUES RETURNING 1", [])):
        with pytest.raises(DatabaseError):
            code["pay"](order, 5)
        code["paid"] = SimpleNamespace(send=paid.send_robust)
        code["pay"](order, 5)
    assert ("new", 0) == (Order.objects.get().status, stage.rows().count())


# 10: tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_tests(page: Any, celery_app: Celery) -> None:
    """The tests of the page pass, and fail where the receiver is not connected, or is without an id."""
    code = page(block_with(RECIPES, "def confirm_order("), "shop.receivers")
    cases = page(block_with(RECIPES, "class ConfirmationTests("), "shop.tests")["ConfirmationTests"]

    assert [] == failing(cases)
    mails, code["EmailMessage"] = code["EmailMessage"], lambda **given: EmailMessage(**{**given, "headers": {}})
    assert ["test_a_second_try_is_recognised"] == failing(cases)
    code["EmailMessage"] = mails
    disconnect(post_save, code["confirm_order"], sender=Order)
    assert 3 == len(failing(cases))


def failing(cases: type[unittest.TestCase]) -> list[str]:
    """Return the names of those of some tests that fail."""
    found = []
    for name in unittest.defaultTestLoader.getTestCaseNames(cases):
        mail.outbox.clear()
        with transaction.atomic():
            case = cases(name)
            case.setUp()
            try:
                getattr(case, name)()
            except Exception:
                found.append(name)
            transaction.set_rollback(True)
    return found
