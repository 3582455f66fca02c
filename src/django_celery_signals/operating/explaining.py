"""``explain``: what happens when a model is saved or deleted, a relation is changed, or a signal is sent, in words."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.management.base import OutputWrapper
from django.db.models.signals import ModelSignal, m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from .. import conf, names
from ..broker import is_eager
from ..connected import ANY, Connected, Plain, connected, plain
from ..durable import saving
from ..senders import label_of
from .finding import Subject, called_at_once, relations_of, sender_name, sent_to, shown_name, subject_of, through_of
from .phrases import either, function_name, late_in_words
from .tables import write_facts, write_text
from .wording import GUARANTEES, facts_of
from .words import Options, Word

_OF_ROWS: dict[Signal, str] = {
    pre_save: "Before a {} is saved",
    post_save: "When a {} is saved",
    pre_delete: "Before a {} is deleted",
    post_delete: "When a {} is deleted",
}


Facts = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One signal of one sender, and what it calls."""

    title: str
    signal: Signal
    sender: Any
    tasks: list[Connected]
    others: list[Plain]
    short: str | None = None  # what to call it in a few words; None: a save or a deletion


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="app.Model, app.Model.field (many-to-many), or a signal: post_save, app.signals:name",
    )


def _explain(options: Options, out: OutputWrapper) -> None:
    """Say what there is to know, part by part; then what is the same for all of them.

    Raises:
        CommandError: for what is no model, relation or signal.
    """
    subject = subject_of(options["what"])
    name, parts = _parts_of(subject)
    shown = [part for part in parts if part.tasks or part.others]
    tasks = [one for part in shown for one in part.tasks]
    if tasks:
        _write_overview(out, name, shown)
        if any(is_eager(one.app) for one in tasks):
            write_text(out, _EAGER, indent=2)
    else:
        write_text(out, f"{name}: no worker runs anything, for no task is connected to it in this process.")
        write_text(out, _where_receivers_are())
    if subject.relation is None and (note := _note_on_subclasses(subject.model)):
        out.write("")
        write_text(out, note)
    common = _common(tasks)
    if common:
        out.write("")
        write_text(out, "For all of these receivers")
        write_facts(out, common, indent=2)
    for part in shown:
        _write_part(out, part, common)
    _write_legend(out, tasks)


_EAGER = "CELERY_TASK_ALWAYS_EAGER is on: no worker runs these, but the process that sends, as soon as they may start."


def _where_receivers_are() -> str:
    if not conf.get().AUTODISCOVER:
        return "Receivers are found nowhere by themselves: AUTODISCOVER is empty."
    modules = either(f"{module}.py" for module in conf.get().AUTODISCOVER)
    return f"Receivers are found in {modules} of the apps in INSTALLED_APPS (AUTODISCOVER)."


# What there is -------------------------------------------------------------------------------------------------------


def _parts_of(subject: Subject) -> tuple[str, list[Part]]:
    if subject.signal is not None:
        return names.signal_name(subject.signal), [*_parts_of_signal(subject.signal)]
    if subject.relation is not None:
        return _relation_name(subject.relation), [_part_of_relation(subject.relation)]
    return label_of(subject.model), [*_parts_of_model(subject.model)]


def _parts_of_model(model: Any) -> Iterator[Part]:
    for signal, title in _OF_ROWS.items():
        yield _part(f"{title.format(model._meta.label)} ({shown_name(names.signal_name(signal))})", signal, model)
    for relation in relations_of(model):
        yield _part_of_relation(relation)
    for signal in dict.fromkeys(one.signal for one in connected() if one.sender_class is model):
        if signal not in _OF_ROWS:
            name = shown_name(names.signal_name(signal))
            yield _part(f"When {name} is sent by {model._meta.label}", signal, model, short=f"{name} sent")


def _part_of_relation(relation: Any) -> Part:
    name = _relation_name(relation)
    short = f"{name.rpartition('.')[2]} changed"
    return _part(f"When {name} is changed (m2m_changed)", m2m_changed, through_of(relation), short=short)


def _relation_name(relation: Any) -> str:
    name = relation.get_accessor_name() if relation.auto_created else relation.name
    return f"{relation.model._meta.label}.{name}"


def _part(title: str, signal: Signal, sender: Any, **more: Any) -> Part:
    tasks, others = [*sent_to(signal, sender)], called_at_once(signal, sender)
    return Part(title=title, signal=signal, sender=sender, tasks=tasks, others=others, **more)


def _parts_of_signal(signal: Signal) -> Iterator[Part]:
    """Yield a part for each sender that something is connected to, and one for what is connected to all."""
    tasks, others = [one for one in connected() if one.signal is signal], plain(signal)
    for sender in dict.fromkeys([one.sender for one in tasks] + [one.sender for one in others]):
        mine = [one for one in tasks if one.sender == sender]
        classes = [one.sender_class for one in mine]
        by = "any sender" if sender == ANY else sender_name(classes[0] if classes else None, sender)
        yield Part(
            title=f"When {shown_name(names.signal_name(signal))} is sent by {by}",
            short=f"by {by}",
            signal=signal,
            sender=classes[0] if classes else None,
            tasks=mine,
            others=[one for one in others if one.sender == sender],
        )


# What is said of it --------------------------------------------------------------------------------------------------


def _write_overview(out: OutputWrapper, name: str, parts: Iterable[Part]) -> None:
    """Say in a few lines which receivers run after what."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for one in part.tasks:
            for occasion in _occasions(part, one):
                found.setdefault(occasion, []).append(one.receiver.rpartition(".")[2])
    write_text(out, f"{name}: what a worker runs afterwards")
    write_facts(out, ((occasion, ", ".join(dict.fromkeys(each))) for occasion, each in found.items()), indent=2)


def _occasions(part: Part, one: Connected) -> list[str]:
    if part.short is not None:
        return [part.short]
    if part.signal in (pre_delete, post_delete):
        return ["deleted"]
    created = [] if one.options.created is False else ["created"]
    return created if one.options.created is True else [*created, "updated"]


def _note_on_subclasses(model: Any) -> str:
    """Say what surprises many: a proxy, and a child with a table of its own, send as themselves."""
    others = [one._meta.label for one in apps.get_models() if model and one is not model and issubclass(one, model)]
    if not others:
        return ""
    those = either(others)
    return f"Saves through {those} have that class as their sender, and are not what follows: explain it by itself."


def _common(tasks: Sequence[Connected]) -> Facts:
    """Return what is the same for several receivers, so that it need not be said of each."""
    known = [facts_of(one) for one in tasks if one.task is not None]
    return [fact for fact in known[0] if all(fact in facts for facts in known)] if known[1:] else []


def _write_part(out: OutputWrapper, part: Part, common: Facts) -> None:
    out.write("")
    write_text(out, part.title)
    if part.others:
        write_text(out, _called_at_once(part), indent=2)
    if sentence := _transaction(part):
        write_text(out, sentence, indent=2)
    for one in part.tasks:
        out.write("")
        write_text(out, one.receiver + _connection(one, part), indent=2)
        write_facts(out, (fact for fact in facts_of(one) if fact not in common), indent=4)


def _connection(one: Connected, part: Part) -> str:
    """Say how it comes to be called, where the title does not."""
    by = [f"connected to {'every sender' if one.sender == ANY else one.sender}"] if _is_broader(one, part) else []
    uid = [f"dispatch_uid {one.uid!r}"] if one.uid is not None else []
    return f" ({', '.join([*by, *uid])})" if by or uid else ""


def _is_broader(one: Connected, part: Part) -> bool:
    return part.sender is not None and one.sender_class is not part.sender


def _called_at_once(part: Part) -> str:
    where = "where the signal is sent" if not isinstance(part.signal, ModelSignal) else "in the process that does it"
    stops = " If one raises, what was connected after it is not called." if part.tasks else ""
    those = (f"{function_name(one.receiver)}{' (a coroutine)' if one.is_async else ''}" for one in part.others)
    return f"At once, {where}, Django calls {either(those, 'and')}.{stops}"


def _transaction(part: Part) -> str:
    """Say what the deliveries are committed with."""
    if not any(one.guarantee == "durable" and one.task is not None for one in part.tasks):
        return ""
    if part.signal not in (pre_save, post_save):
        return _IN_DJANGOS if isinstance(part.signal, ModelSignal) else _IN_YOURS
    if not conf.get().ATOMIC_SAVES:
        return _IN_NONE
    if saving.is_save(part.signal, part.sender) and (late := saving.late_database(part.sender)):
        return f"{_IN_NONE_THERE} {late_in_words(late)}"
    return _IN_OUR_OWN if part.sender in saving.models() else _IN_OUR_OWN_SOON


_IN_DJANGOS = "Django does this in a transaction, and the durable deliveries are written in it: all, or nothing."
_IN_YOURS = (
    "The durable deliveries are committed with the transaction in which the signal is sent; outside of one, each by "
    "itself."
)
_IN_OUR_OWN = (
    "The save and its durable deliveries are committed together: a save outside of a transaction is given one of its "
    "own (ATOMIC_SAVES)."
)
_IN_OUR_OWN_SOON = (
    "The save and its durable deliveries are committed together in a transaction. Of saves outside of one, the first "
    "in each process is an exception; later ones are given a transaction of their own (ATOMIC_SAVES). Connect with "
    "receiver_task() or connect() and a sender=, and the first is no exception."
)
_IN_NONE_THERE = (
    "In a transaction, the save and its durable deliveries are committed together. Outside of one the save is "
    "committed first, and a process that dies just then loses the event."
)
_IN_NONE = f"{_IN_NONE_THERE.removesuffix('.')} (ATOMIC_SAVES is False)."


def _write_legend(out: OutputWrapper, tasks: Iterable[Connected]) -> None:
    """Say once what a word means that was used above."""
    known = [one for one in tasks if one.task is not None]
    used = {one.guarantee for one in known}
    if not used:
        return
    out.write("")
    write_text(out, "What a guarantee means")
    write_facts(out, ((name, text) for name, text in GUARANTEES.items() if name in used), indent=2)
    out.write("")
    fixtures = any(isinstance(one.signal, ModelSignal) for one in known)
    write_text(out, f"{_FIXTURES if fixtures else ''}{_BRACKETS}")


_FIXTURES = "What loaddata saves is sent only where that is said (raw=True). "
_BRACKETS = "A word in brackets, such as (max_retries=), is the option by which to change what stands before it."


WORDS = [
    Word(
        name="explain",
        help="say in words what happens when a model is saved, or a signal is sent",
        teaches="Say in words what happens when an instance of a model is saved or deleted, a many-to-many field is "
        "changed, or a signal is sent: which plain receivers Django calls at once; which tasks a worker runs, when, "
        "with what, under which guarantee, in which queue and order; and what happens when they fail. It asks no "
        "database and no broker. Examples: manage.py signals explain shop.Order; manage.py signals explain "
        "shop.Order.tags; manage.py signals explain post_save",
        add_arguments=_add_arguments,
        run=_explain,
        checks=False,  # what they complain of can be seen here
    )
]
