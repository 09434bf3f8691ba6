"""Resource types that the template may name and the local cloud need not have.

MiniStack refuses a whole template for one type that it does not know. These
are accepted as names without behaviour.
"""

PLACEHOLDERS = (
    "AWS::CloudWatch::CompositeAlarm",
    "AWS::RDS::DBProxy",
    "AWS::RDS::DBProxyTargetGroup",
    "AWS::WAFv2::LoggingConfiguration",
    "AWS::WAFv2::WebACLAssociation",
)


def apply() -> None:
    """Register the placeholders, leaving alone what MiniStack has learnt meanwhile."""
    from ministack.services.cloudformation import provisioners

    for resource_type in PLACEHOLDERS:
        provisioners._RESOURCE_HANDLERS.setdefault(resource_type, {"create": _create, "delete": lambda *_: None})


def _create(logical_id: str, _properties: dict, stack: str) -> tuple[str, dict]:
    return f"{stack}-{logical_id}", {"Arn": f"arn:aws:local:::{logical_id}"}
