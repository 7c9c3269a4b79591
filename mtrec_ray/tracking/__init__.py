"""What a training run measures while it trains: a JSONL file, TensorBoard events, MLflow."""
