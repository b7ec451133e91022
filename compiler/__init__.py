"""From a model file or a function to an artifact: front ends, tracing, passes, the driver and the command line."""
