"""Benchmarks: ``python -m benchmarks`` runs all scenarios, ``python -m benchmarks NAME`` runs one.

Machines are noisy, so rates are compared in alternating rounds of one run and only their ratio is a result. Durations
of single steps are printed with their bounds.
"""
