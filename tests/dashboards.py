"""What the dashboards and the alerts ask Prometheus for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parent.parent / "deploy"


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))]


def expressions() -> Iterator[str]:
    """PromQL, Grafana's variables filled in."""
    for dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
