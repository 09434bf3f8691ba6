"""What the Stripe replica's additions do."""

import hashlib
import hmac

from servers.stripe import downport, gaps, webhooks


def test_older_syntax_means_the_same():
    source = '''"""Doc."""
from typing import Literal
type Names = Literal["a", "b"]
class Box[T]:
    def get[**P, R](self, f):
        try:
            return f()
        except KeyError, ValueError as error:
            return error
'''
    module = {}
    exec(downport.downported(source), module)
    box = module["Box"]()
    assert box.get(lambda: 1) == 1
    assert isinstance(box.get(lambda: {}["x"]), KeyError)
    assert module["Names"].__args__ == ("a", "b")


def test_missing_fields_are_filled_wherever_they_lie():
    price = {
        "id": "price_1", "active": True, "unit_amount": 2999, "billing_scheme": "per_unit", "created": 1,
        "currency": "usd", "livemode": False, "metadata": {}, "product": "prod_1",
        "recurring": {"interval": "year", "interval_count": 1, "usage_type": "licensed"},
    }  # fmt: skip
    event = {"data": {"object": {"items": {"data": [{"object": "subscription_item", "price": price}]}}}}
    gaps.fill(event)
    plan = event["data"]["object"]["items"]["data"][0]["plan"]
    assert (plan["id"], plan["amount"], plan["interval"]) == ("price_1", 2999, "year")


def test_signature_is_stripes():
    header = webhooks.signature("whsec_x", b"{}", 12)
    expected = hmac.new(b"whsec_x", b"12.{}", hashlib.sha256).hexdigest()
    assert header == f"t=12,v1={expected}"
