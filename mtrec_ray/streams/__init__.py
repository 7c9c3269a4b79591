"""Streams of pairs (paper A, 3.2 and 4.1) and of histories (paper B): who is read, with which label, in which step."""
