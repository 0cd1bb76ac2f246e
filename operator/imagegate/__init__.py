"""Imagegate: pulls images onto nodes before pods land there, and holds a taint until it is done."""

__version__ = "0.1.0"
