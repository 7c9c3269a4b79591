"""Training streams of labelled pairs (paper A) and of histories (paper B)."""
