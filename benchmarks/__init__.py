"""Measurements: `inferc bench`'s engine and the adapters of other engines, and suites that are run as scripts."""
