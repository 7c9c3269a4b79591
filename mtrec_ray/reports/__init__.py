"""One page of figures from what runs, evaluations, audits and searches saved."""
