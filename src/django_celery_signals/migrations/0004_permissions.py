"""Who may see deliveries, what was sent, and retry or discard them. The tables stay as they are."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("django_celery_signals", "0003_minute")]

    operations = [
        migrations.AlterModelOptions(
            name="delivery",
            options={
                "default_permissions": ("view",),
                "permissions": [
                    ("replay_delivery", "Can retry and discard failed deliveries"),
                    ("view_payload", "Can see what was sent: payload, key, options, error message and traceback"),
                ],
                "verbose_name_plural": "deliveries",
            },
        ),
    ]
