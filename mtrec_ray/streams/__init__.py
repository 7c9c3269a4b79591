"""Pair streams (paper A, 3.2 and 4.1): who is in the sample, which pairs carry which label, in which step they come."""
