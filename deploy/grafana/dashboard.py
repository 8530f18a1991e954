"""Generate the Grafana dashboard ``ossa-registry.json``: ``python deploy/grafana/dashboard.py``."""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("ossa-registry.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
_SELECTED = 'instance=~"$instance"'


class Panel(NamedTuple):
    """A dashboard panel with one curve per expression."""

    title: str
    unit: str
    curves: dict[str, str]
    """Maps each legend to its expression. ``{}`` in an expression is replaced by the instance selector."""
    kind: str = "timeseries"


def _quantile(metric: str, by: str = "", q: float = 0.99) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{}}[$__rate_interval])))"


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel("Processes", "none", {"up": 'sum(up{job="ossa-registry"})'}, "stat"),
        Panel("Services", "none", {"{{status}}": "max by (status) (ossa_registry_services{})"}, "stat"),
        Panel("Redis", "none", {"{{instance}}": "ossa_registry_store_connected{}"}, "stat"),
    ],
    "Requests": [
        Panel("RPCs", "reqps", {"{{method}}": _rate("ossa_registry_grpc_requests_total", "method")}),
        Panel(
            "RPC errors",
            "reqps",
            {"{{method}} {{code}}": _rate("ossa_registry_grpc_requests_total", "method, code", 'code!="OK"')},
        ),
        Panel(
            "RPC duration, p99", "s", {"{{method}}": _quantile("ossa_registry_grpc_request_duration_seconds", "method")}
        ),
        Panel("HTTP", "reqps", {"{{route}} {{status}}": _rate("ossa_registry_http_requests_total", "route, status")}),
        Panel(
            "HTTP duration, p99", "s", {"{{route}}": _quantile("ossa_registry_http_request_duration_seconds", "route")}
        ),
        Panel(
            "Cache hit rate",
            "percentunit",
            {
                "{{cache}}": _rate("ossa_registry_cache_requests_total", "cache", 'result="hit"')
                + " / "
                + _rate("ossa_registry_cache_requests_total", "cache")
            },
        ),
    ],
    "Changes": [
        Panel("Commits", "ops", {"{{outcome}}": _rate("ossa_registry_commits_total", "outcome")}),
        Panel(
            "Redis script duration, p99",
            "s",
            {"{{script}}": _quantile("ossa_registry_store_call_duration_seconds", "script")},
        ),
        Panel("Replication lag, p99", "s", {"{{instance}}": _quantile("ossa_registry_event_lag_seconds", "instance")}),
        Panel("Follower", "none", {"{{instance}} {{state}}": "ossa_registry_follower_state{} == 1"}),
        Panel(
            "Resyncs and epoch changes",
            "none",
            {
                "{{instance}} resyncs": "increase(ossa_registry_resyncs_total{}[$__rate_interval])",
                "{{instance}} epoch changes": "increase(ossa_registry_epoch_changes_total{}[$__rate_interval])",
            },
        ),
        Panel("Waiting Redis commands", "none", {"{{instance}}": "ossa_registry_store_waiting_commands{}"}),
    ],
    "Watches": [
        Panel("Watchers", "none", {"{{instance}}": "ossa_registry_watchers{}"}),
        Panel("Watches started", "ops", {"{{start}}": _rate("ossa_registry_watches_started_total", "start")}),
        Panel(
            "Watches ended",
            "ops",
            {
                "{{reason}}": _rate("ossa_registry_watches_ended_total", "reason"),
                "cursor expired": "sum(rate(ossa_registry_watch_cursors_expired_total{}[$__rate_interval]))",
            },
        ),
        Panel("Events sent", "ops", {"{{instance}}": _rate("ossa_registry_watch_events_total", "instance")}),
    ],
    "Leases and health": [
        Panel("Leases", "none", {"leases": "max(ossa_registry_leases{})"}),
        Panel("Expired leases", "ops", {"{{reason}}": _rate("ossa_registry_leases_expired_total", "reason")}),
        Panel("Heartbeats", "ops", {"{{result}}": _rate("ossa_registry_heartbeats_total", "result")}),
        Panel("Probes", "ops", {"{{outcome}}": _rate("ossa_registry_probes_total", "outcome")}),
        Panel(
            "Probe lateness, p99",
            "s",
            {"{{instance}}": _quantile("ossa_registry_probe_lateness_seconds", "instance")},
        ),
        Panel(
            "Probed services",
            "none",
            {
                "{{instance}}": "ossa_registry_probed_services{}",
                "{{instance}} self-preservation": "ossa_registry_self_preservation_active{}",
            },
        ),
    ],
    "Process and Redis": [
        Panel(
            "Event loop lag, p99", "s", {"{{instance}}": _quantile("ossa_registry_event_loop_lag_seconds", "instance")}
        ),
        Panel(
            "Event loop stalls", "s", {"{{instance}}": _rate("ossa_registry_event_loop_stall_seconds_sum", "instance")}
        ),
        Panel("CPU", "percentunit", {"{{instance}}": "rate(process_cpu_seconds_total{}[$__rate_interval])"}),
        Panel("Memory", "bytes", {"{{instance}}": "process_resident_memory_bytes{}"}),
        Panel("Open files", "none", {"{{instance}}": "process_open_fds{}"}),
        Panel("Redis connections", "none", {"{{instance}} {{pool}} {{state}}": "ossa_registry_redis_connections{}"}),
        Panel(
            "Redis memory",
            "bytes",
            {
                "used": "max(ossa_registry_redis_memory_bytes{})",
                "limit": "max(ossa_registry_redis_memory_max_bytes{}) > 0",
            },
        ),
    ],
}


def expression(text: str) -> str:
    """Add the instance selector to each metric selector of an expression."""
    chosen = text.replace("{}", "{" + _SELECTED + "}")
    for label in ("code", "result"):
        chosen = chosen.replace("{" + label, "{" + _SELECTED + "," + label)
    return chosen


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _place(0, y, _COLUMNS, 1)})
        y += 1
        for i, panel in enumerate(members):
            x = i % (_COLUMNS // _WIDTH) * _WIDTH
            panels.append(_panel(panel, x, y + i // (_COLUMNS // _WIDTH) * _HEIGHT))
        y += -(-len(members) // (_COLUMNS // _WIDTH)) * _HEIGHT
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": "ossa-registry",
        "title": "ossa-registry",
        "tags": ["ossa-registry"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "graphTooltip": 1,
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Process",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": "label_values(ossa_registry_build_info, instance)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                },
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": _place(x, y, _WIDTH, _HEIGHT),
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expression(text), "legendFormat": legend}
            for i, (legend, text) in enumerate(panel.curves.items())
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def text() -> str:
    """Return the content of ``ossa-registry.json``."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
