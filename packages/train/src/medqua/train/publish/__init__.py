"""What goes out of the house with a bundle: its card, and the terms of its data."""
