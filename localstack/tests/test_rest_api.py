"""What the emulator's API Gateway passes on."""

import pytest

from servers.aws.rest_api import LONGEST_REPLY, fits


@pytest.mark.parametrize(("text", "octets"), [("a", 1), ("\n", 2), ('"', 2), ("\x01", 6), ("é", 2), ("😀", 4)])
def test_a_reply_is_measured_in_octets_of_its_json(text, octets):
    envelope = len('{"statusCode":200,"body":""}')
    longest = (LONGEST_REPLY - envelope) // octets
    assert fits({"statusCode": 200, "body": text * longest})
    assert not fits({"statusCode": 200, "body": text * (longest + 1)})
