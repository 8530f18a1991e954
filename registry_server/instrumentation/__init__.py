"""Counters, tracing, request context, audit and logging: leaf modules that every other package may import."""
