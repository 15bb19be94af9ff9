"""Recorders for experiment trackers: TensorBoard, Weights & Biases, MLflow."""
