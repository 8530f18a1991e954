"""Counters, tracing, request context, audit and logging: leaves that every other package may use."""
