"""Imagegate pulls images onto nodes before pods are scheduled there, and holds joining nodes with a
taint until they have the images.
"""

__version__ = "0.1.0"
