"""What is found: observations, their codes, and calibrated probabilities."""
