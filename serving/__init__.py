"""The online endpoint: recommendations and propensities that ignore the attributes each request names."""
