"""The lake: validated, bucketed Parquet tables that training, evaluation and serving read."""
