"""Exporters of metrics (Prometheus) and traces (OpenTelemetry)."""
