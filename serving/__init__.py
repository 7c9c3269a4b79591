"""The online endpoint: recommendations and propensities with the attributes that each request wants ignored."""
