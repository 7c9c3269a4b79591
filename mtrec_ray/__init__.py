"""mtrec_ray: multi-territory propensity models and selective fairness for video recommendation, on Ray."""
