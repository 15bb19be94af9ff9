"""Recorders of other programs: TensorBoard, Weights & Biases, MLflow."""
