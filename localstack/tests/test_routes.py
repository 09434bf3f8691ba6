"""The router's manifest, from a template."""

import tomllib

import cloudformation
import functions

TEMPLATE = """
Resources:
  Table: {Type: AWS::DynamoDB::Table}
  Read:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: !Sub '${AWS::StackName}-items-read'
      Events:
        Route: {Type: Api, Properties: {RestApiId: !Ref Api, Method: get, Path: '/items/{id}'}}
        Alias: {Type: Api, Properties: {RestApiId: !Ref Api, Method: get, Path: '/i/{id}'}}
  Write:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: !Sub '${AWS::StackName}-items-write'
      Events:
        Route: {Type: Api, Properties: {RestApiId: !Ref Api, Method: put, Path: '/items/{id}'}}
        Queue: {Type: SQS, Properties: {Queue: !GetAtt Queue.Arn}}
  Fallback:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: !Sub '${AWS::StackName}-gateway-fallback'
      Events:
        Any: {Type: Api, Properties: {RestApiId: !Ref Api, Method: any, Path: '/{proxy+}'}}
        Preflight: {Type: Api, Properties: {RestApiId: !Ref Api, Method: options, Path: '/items/{id}'}}
"""


def test_every_route_but_the_fallbacks_reaches_its_function():
    routes = cloudformation.routes(cloudformation.parse(TEMPLATE))
    manifest = tomllib.loads(functions.router_manifest(routes))
    assert manifest["package"]["metadata"]["lambda"]["watch"]["router"] == {
        "/items/{id}": [
            {"method": "GET", "function": "items-read"},
            {"method": "PUT", "function": "items-write"},
        ],
        "/i/{id}": [{"method": "GET", "function": "items-read"}],
    }


def test_router_knows_each_function_once():
    routes = cloudformation.routes(cloudformation.parse(TEMPLATE))
    manifest = tomllib.loads(functions.router_manifest(routes))
    assert [target["name"] for target in manifest["bin"]] == ["items-read", "items-write"]


def test_projects_template_has_a_function_for_every_route():
    template = cloudformation.template()
    names = set(cloudformation.functions(template))
    assert cloudformation.FALLBACK in names
    assert {route.function for route in cloudformation.routes(template)} < names
