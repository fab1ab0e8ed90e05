"""Whom a run tells its log and its figures: TensorBoard, Weights & Biases, MLflow."""
