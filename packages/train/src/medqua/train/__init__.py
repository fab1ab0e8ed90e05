"""Fine-tuning: recipes, data sets, the trainer, and the evidence."""
