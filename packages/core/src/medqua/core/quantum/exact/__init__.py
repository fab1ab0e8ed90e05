"""Engines that evaluate the circuit exactly, in torch."""
