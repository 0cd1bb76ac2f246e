"""Imagegate as users run it, on a real cluster: image built, chart installed, objects applied."""
