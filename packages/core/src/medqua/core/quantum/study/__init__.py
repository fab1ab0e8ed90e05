"""How trainable the circuit is: what random circuits do, beside what theory says they do."""
