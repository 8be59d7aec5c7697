"""This library measured beside what its users would write otherwise: `python -m benchmarks`; see README.md here."""
