"""The command line: reads settings, starts Ray, runs a job, prints its result. Heavy imports wait until a job runs."""
