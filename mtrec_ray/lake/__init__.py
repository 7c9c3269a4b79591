"""The lake: validated, bucketed Parquet tables that every later room reads."""
