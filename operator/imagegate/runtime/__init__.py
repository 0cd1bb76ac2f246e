"""What makes decisions happen: store, queues, reconcilers, resync and leader election."""
