"""Figures of a training run while it trains: metrics.jsonl, TensorBoard, MLflow."""
