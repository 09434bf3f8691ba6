"""Read `template.yaml`: the one truth about functions, routes and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from settings import ROOT

TEMPLATE = ROOT / "template.yaml"

# Answers whatever no route names, on every method.
FALLBACK = "gateway-fallback"


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    function: str


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, kept as `{"Sub": ...}`."""


def _short_function(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _short_function)


def parse(text: str) -> dict[str, Any]:
    """A template as plain data."""
    return yaml.load(text, _Loader)


@cache
def template() -> dict[str, Any]:
    """The project's template."""
    return parse(TEMPLATE.read_text())


def functions(source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Properties of every function by its name, which is also its binary's."""
    found = {}
    for resource in source["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            properties = resource["Properties"]
            name = properties["FunctionName"]
            name = name["Sub"] if isinstance(name, dict) else name
            found[name.removeprefix("${AWS::StackName}-")] = properties
    return found


def routes(source: dict[str, Any]) -> list[Route]:
    """Every route of the API but the fallback's, which are whatever is left."""
    found = []
    for function, properties in functions(source).items():
        for event in properties.get("Events", {}).values():
            if event["Type"] == "Api" and function != FALLBACK:
                details = event["Properties"]
                found.append(Route(details["Method"].upper(), details["Path"], function))
    return sorted(found, key=lambda route: (route.path, route.method))


def streamed(source: dict[str, Any]) -> set[str]:
    """Names of the functions that stream their replies."""
    return {
        name
        for name, properties in functions(source).items()
        for event in properties.get("Events", {}).values()
        if event["Properties"].get("ResponseTransferMode") == "RESPONSE_STREAM"
    }


def parameters(source: dict[str, Any]) -> set[str]:
    """Names of the template's parameters."""
    return set(source.get("Parameters", {}))
