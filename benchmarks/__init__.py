"""Benchmarks: ``python -m benchmarks`` runs all, ``python -m benchmarks NAME`` one of them.

Machines are noisy: rates are compared in alternating rounds of one run, and only their ratio is a claim. Times of
single steps are printed with the bound that they have to keep.
"""
