"""The words of ``manage.py signals``."""
