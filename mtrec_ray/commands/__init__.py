"""The command line: reads settings, runs a job, prints its result."""
