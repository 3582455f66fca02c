"""Typed values to plain JSON and back: ``core`` has the machinery, each of the others what it registers there.

``types``: values; ``named``: what both processes hold and find by name; ``instances``, ``fields``, ``detached``: model
instances, their fields' own values, and the snapshots that refuse to be written; ``standins``: what cannot travel.
"""

from . import instances, named, standins, types  # noqa: F401 - they register their codecs
from .core import register_codec

__all__ = ["register_codec"]
