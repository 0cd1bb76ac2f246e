"""The API server: the only place that imports ``kubernetes`` and knows what a response means."""
