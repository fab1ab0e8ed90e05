"""The variational bottleneck: one ansatz, many engines."""
