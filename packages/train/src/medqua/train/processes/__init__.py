"""One run in many processes: joining them, what they tell each other, and a model in parts."""
