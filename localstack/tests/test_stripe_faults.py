"""Failures of the Stripe replica that were asked for, over HTTP."""

import http.client

import pytest
from stripe_server import Replica


def test_stripe_refuses_as_often_as_asked_and_does_nothing(stripe: Replica):
    customer = stripe.customer(None)
    stripe.control("faults", match=f"POST /v1/customers/{customer}", status=503, times=2)
    for _ in range(2):
        assert stripe.refused(f"/v1/customers/{customer}", name="Ada")[0] == 503
    assert stripe.get(f"/v1/customers/{customer}")["name"] is None
    assert stripe.post(f"/v1/customers/{customer}", name="Ada")["name"] == "Ada"


def test_a_failure_is_repeated_under_its_key_and_under_no_other(stripe: Replica):
    customer = stripe.customer(None)
    path = f"/v1/customers/{customer}"
    stripe.control("faults", match=f"POST {path}", status=500)
    for _ in range(2):
        assert stripe.refused(path, {"Idempotency-Key": f"{customer}-1"}, name="Ada")[0] == 500
    assert stripe.post(path, {"Idempotency-Key": f"{customer}-2"}, name="Ada")["name"] == "Ada"
    stripe.control("faults", match=f"POST {path}", status=500, done=True)
    assert stripe.refused(path, name="Grace")[0] == 500
    assert stripe.get(path)["name"] == "Grace"
    stripe.control("faults", match=f"POST {path}", status=429)
    key = {"Idempotency-Key": f"{customer}-3"}
    assert stripe.refused(path, key, name="Eve")[0] == 429
    assert stripe.post(path, key, name="Eve")["name"] == "Eve"


def test_an_answer_may_be_lost_though_the_work_is_done(stripe: Replica):
    customer = stripe.customer()
    price = stripe.price()
    key = {"Idempotency-Key": f"lost-{customer}"}
    form = {"customer": customer, "items[0][price]": price}
    stripe.control("faults", match=customer, lose=True)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        stripe.post("/v1/subscriptions", key, **form)
    found = stripe.get("/v1/subscriptions", customer=customer)["data"]
    assert [stripe.post("/v1/subscriptions", key, **form)["id"]] == [row["id"] for row in found]


def test_faults_can_be_taken_back_and_wrong_ones_are_refused(stripe: Replica):
    customer = stripe.customer(None)
    stripe.control("faults", match=customer, status=500)
    assert stripe.send("DELETE", "/_replica/faults")[0] == 200
    assert stripe.get(f"/v1/customers/{customer}")["id"] == customer
    for body in (b"{}", b'{"match": "x", "status": 200}', b'{"match": "x", "times": 0}', b'{"match": 1}'):
        assert stripe.send("POST", "/_replica/faults", body)[0] == 400
