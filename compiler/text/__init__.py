"""Tokenizers and chat templates compiled to tables for the C of `runtime/c/tokenizer.h` and its neighbours."""
