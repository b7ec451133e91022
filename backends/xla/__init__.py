"""The XLA backend: graphs as StableHLO text, compiled by XLA for CPUs, GPUs and TPUs."""
