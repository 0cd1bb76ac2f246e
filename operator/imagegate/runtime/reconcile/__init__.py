"""The control loop: what is known is observed, decided about and acted upon, key by key."""
