"""What the operator costs: CPU, memory and requests for each node."""
