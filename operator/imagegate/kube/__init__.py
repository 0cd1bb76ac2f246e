"""Access to the API server. Only this package imports ``kubernetes`` and interprets responses."""
