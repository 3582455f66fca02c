"""The app's configuration."""

from django.apps import AppConfig


class FlightsConfig(AppConfig):
    """Keep a receipt of every receiver that ran, wherever it runs."""

    name = "flights"

    def ready(self) -> None:
        """Connect to the library's own signals; the receivers themselves are found without help."""
        from . import receipts  # noqa: F401  (it needs the models, which are loaded only now)
