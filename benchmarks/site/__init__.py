"""The project that is measured."""
