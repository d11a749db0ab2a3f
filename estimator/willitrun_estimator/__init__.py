"""Pure functions from a machine, a model and a request to a plan. No clock, files, network or printing."""
