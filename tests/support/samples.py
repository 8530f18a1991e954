"""Services for tests."""

from typing import Any

from google.protobuf.json_format import ParseDict

from ossa.registry.v1.service_pb2 import Service


def example_service() -> Service:
    """Return the example of the OSSA document, with a second capability and schemas."""
    return ParseDict(
        {
            "name": "ai-text-processor",
            "endpoint": "https://ai-service.company.com:8080",
            "version": "2.1.0",
            "capabilities": [
                {
                    "name": "text-analysis",
                    "version": "2.0.0",
                    "description": "Advanced text analysis with sentiment detection",
                    "inputs": {
                        "type": "object",
                        "properties": {"text": {"type": "string", "maxLength": 5000}},
                        "required": ["text"],
                    },
                    "outputs": {"type": "object", "properties": {"sentiment": {"type": "number"}}},
                },
                {
                    "name": "translate",
                    "version": "1.4.2",
                    "inputs": {"type": "object"},
                    "outputs": {"type": "object"},
                },
            ],
            "metadata": {
                "tags": ["ai", "nlp"],
                "environment": "production",
                "labels": {"region": "eu", "tier": "gold"},
            },
        },
        Service(),
    )


def small_service(name: str, **fields: Any) -> Service:
    """Return a service with only the required fields, plus ``fields``."""
    return Service(**{"name": name, "endpoint": f"http://{name.lower()}.test:8080", "version": "1.0.0", **fields})
