"""Figures of each minute: how many events were sent and run, how deliveries stood. Nothing of the flow needs them."""

from .reading import Figures, Point, rates, series, step_for

__all__ = ["Figures", "Point", "rates", "series", "step_for"]
