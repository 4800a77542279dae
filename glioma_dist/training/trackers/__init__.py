"""Experiment trackers: what a run tells, sent to TensorBoard, Weights & Biases, MLflow and others."""
