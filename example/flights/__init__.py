"""Flights, and what is known about them."""
