"""The whole operator in virtual time, on a cluster in memory. Everything follows from one seed.

``python -m tests.simulation --seed 7`` runs one cluster; see `focus` for what may happen to it.
"""
