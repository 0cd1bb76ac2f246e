"""Runs the whole operator in virtual time on a cluster in memory. One seed determines a run.

``python -m tests.simulation --seed 7`` runs one cluster; `focus` and `lives` contain its faults.
"""
