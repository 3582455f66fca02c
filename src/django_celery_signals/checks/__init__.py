"""System checks: what a project should know before it finds out."""

from __future__ import annotations

from django.core.checks import Tags, register

from . import databases, project, receivers

TAG = "django_celery_signals"


def register_checks() -> None:
    """Add the checks to those of ``manage.py check``; those of the databases run with ``--database``."""
    for check in (*receivers.CHECKS, *project.CHECKS):
        register(check, TAG)
    for check in project.DEPLOY_CHECKS:
        register(check, TAG, deploy=True)
    for check in databases.CHECKS:
        register(check, TAG, Tags.database)
