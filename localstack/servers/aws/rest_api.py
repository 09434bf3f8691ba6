"""What SAM writes into a REST API's OpenAPI body and MiniStack does not import.

Integration responses and request templates, the any-method, gateway responses,
streaming integrations, and the update in place of an API with a pinned id. Also
the end of what a function may reply.
"""

import json
from typing import Any

# What Lambda lets a function reply with, unless it streams.
LONGEST_REPLY = 6_291_556


def apply() -> None:
    """Patch the importer, the integration lookup and the CloudFormation update."""
    _import_whole_operations()
    _import_any_method()
    _import_gateway_responses()
    _accept_streaming_integrations()
    _update_pinned_apis_in_place()


def fits(response: dict) -> bool:
    """Whether Lambda lets the reply of a function pass."""
    return len(json.dumps(response, ensure_ascii=False, separators=(",", ":")).encode()) <= LONGEST_REPLY


def _import_whole_operations() -> None:
    """Without this a CORS preflight answered by a mock integration has no headers."""
    from ministack.services import apigateway_v1 as gateway

    published = gateway._import_operation

    def import_operation(api: str, resource: str, method: str, operation: dict | None, *rest: Any) -> None:
        published(api, resource, method, operation, *rest)
        operation = operation or {}
        integration = operation.get("x-amazon-apigateway-integration") or {}
        if integration:
            whole = {key: value for key, value in integration.items() if key != "responses"}
            whole["type"] = (integration.get("type") or "aws_proxy").upper()
            gateway._put_integration(api, resource, method, whole)
        for status, response in (operation.get("responses") or {}).items():
            headers = {f"method.response.header.{name}": False for name in response.get("headers") or {}}
            gateway._put_method_response(api, resource, method, str(status), {"responseParameters": headers})
        for pattern, response in (integration.get("responses") or {}).items():
            gateway._put_integration_response(
                api,
                resource,
                method,
                str(response.get("statusCode", "200")),
                {
                    "selectionPattern": "" if pattern == "default" else pattern,
                    "responseParameters": response.get("responseParameters") or {},
                    "responseTemplates": response.get("responseTemplates") or {},
                },
            )

    gateway._import_operation = import_operation


def _import_any_method() -> None:
    from ministack.services import apigateway_v1 as gateway

    published = gateway._import_path_item

    def import_path_item(api: str, path: str, item: dict, *rest: Any) -> None:
        item = dict(item)
        if "x-amazon-apigateway-any-method" in item:
            item["any"] = item.pop("x-amazon-apigateway-any-method")
        published(api, path, item, *rest)

    gateway._import_path_item = import_path_item
    gateway._OPENAPI_HTTP_METHODS = {*gateway._OPENAPI_HTTP_METHODS, "any"}


def _import_gateway_responses() -> None:
    from ministack.services import apigateway_v1 as gateway

    published = gateway._import_rest_api

    def import_rest_api(spec: dict, base: dict | None = None) -> str:
        api = published(spec, base)
        for kind, response in (spec.get("x-amazon-apigateway-gateway-responses") or {}).items():
            fields = {
                "statusCode": str(response["statusCode"]) if response.get("statusCode") else None,
                "responseParameters": response.get("responseParameters"),
                "responseTemplates": response.get("responseTemplates"),
            }
            gateway._put_gateway_response(api, kind, {key: value for key, value in fields.items() if value})
        return api

    gateway._import_rest_api = import_rest_api


def _accept_streaming_integrations() -> None:
    """RESPONSE_STREAM integrations answer whole: head from the prelude, then the body at once."""
    from ministack.services import apigateway_v1 as gateway
    from ministack.services import lambda_svc

    find_function = gateway._extract_lambda_ref_from_integration_uri
    shape_reply = gateway._lambda_proxy_response

    def lambda_of_uri(uri: str | None) -> str:
        return find_function((uri or "").replace("/response-streaming-invocations", "/invocations"))

    def proxy_response(result: dict) -> tuple[dict | None, str | None]:
        body = result.get("body")
        raw = body.encode() if isinstance(body, str) else body
        if isinstance(raw, (bytes, bytearray)) and bytes(8) in raw:
            prelude, streamed = lambda_svc._split_stream_prelude(bytes(raw))
            if prelude is not None:
                return {**prelude, "body": streamed.decode("utf-8", "replace")}, None
        response, failure = shape_reply(result)
        return (response, failure) if response is None or fits(response) else (None, "Internal server error")

    gateway._extract_lambda_ref_from_integration_uri = lambda_of_uri
    gateway._lambda_proxy_response = proxy_response


def _update_pinned_apis_in_place() -> None:
    """An API whose id is pinned by a tag keeps id and stages when its body changes.

    MiniStack creates the successor before it deletes the predecessor, so a
    pinned id is still taken at that moment.
    """
    from ministack.services import apigateway_v1 as gateway
    from ministack.services.cloudformation import provisioners

    published = provisioners._apigw_rest_api_update
    kept_stores = [
        store
        for name in ("_stages_v1", "_deployments_v1", "_stages", "_deployments")
        if (store := getattr(gateway, name, None)) is not None
    ]

    def update(api: str, old: dict, new: dict, stack: str, logical_id: str | None = None) -> Any:
        pinned = any(tag.get("Key") == "ms-custom-id" for tag in new.get("Tags", []))
        if not pinned or new.get("Body") == old.get("Body"):
            return published(api, old, new, stack, logical_id)
        kept = [(store, store.get(api)) for store in kept_stores]
        provisioners._apigw_rest_api_delete(api, old)
        created = provisioners._apigw_rest_api_create(logical_id or api, new, stack)
        for store, value in kept:
            if value is not None:
                store[api] = value
        return created

    provisioners._apigw_rest_api_update = update
    handler = provisioners._RESOURCE_HANDLERS["AWS::ApiGateway::RestApi"]
    if "update" in handler:
        handler["update"] = update
