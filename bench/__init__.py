"""Benchmarks of softgate against its peers: `python -m bench --help`, from a checkout."""
