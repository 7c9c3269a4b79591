"""The endpoint: recommendations that ignore the attributes each request names."""
