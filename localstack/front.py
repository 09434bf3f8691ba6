"""Port 4000 itself: HAProxy before cargo-lambda's router, and between the router and what replies to it whole.

The router takes a body for text where its media type says so, and answers 500
itself when such a body is not UTF-8. It compares media types by case, which
HTTP does not: with a capital letter the body goes through as bytes, and the
function answers as it does behind API Gateway. It also answers 500 to a header
value outside ASCII, which is refused here with a 400. Only in cookies, which
other applications on the same host set too, such characters become question
marks. Everything else, streams included, passes as it is.

The Runtime API answers a reply before it has read it. Over HTTP/1.1, hyper then
keeps the reply's body open until the next request on that connection. A function
whose reply is still on its way when it reads the answer, as are the megabytes of
a process that has only just started, makes that request on another connection,
and the client waits for ever. A body of HTTP/2 ends by itself, which functions do
not speak: HAProxy does. Streamed replies are chunked, which ends them too; they
go to the router itself, since HAProxy would join the frames that it takes apart.
"""

from __future__ import annotations

from pathlib import Path

import bundle
import tools
from settings import Profile
from supervision import Program

CONFIGURATION = """\
global
    maxconn 4096

defaults
    mode http
    timeout connect 5s
    # A stream may be silent for as long as a function may run.
    timeout client 6m
    timeout server 6m
    # Each piece of a stream goes out by itself; else it waits 200 ms for company.
    option http-no-delay

frontend api
    bind 127.0.0.1:{port}
    # The router writes a reply's head and body apart, with Nagle's algorithm on. On a connection that was used
    # before, the acknowledgement that the body waits for comes 40 ms late.
    option http-server-close
    acl ascii req.hdrs -m reg ^[[:print:][:space:]]*$
    # The router reads the first Cookie header alone.
    http-request set-header cookie %[req.fhdr(cookie,1),regsub("[^ -~]",?,g)] if {{ req.hdr(cookie) -m found }} !ascii
    http-request return status 400 {malformed} if !ascii
    http-request replace-header content-type ^application/json(.*)$ Application/json\\1
    http-request replace-header content-type ^text/(.*)$ Text/\\1
    http-request set-header content-type application/octet-stream if METH_POST !{{ req.hdr(content-type) -m found }}
    # The router knows whole seconds alone, and a function that has to start first would take its own time for it.
    http-request set-header x-request-start %[date(0,ms)]
    unique-id-format %[uuid()]
    http-error status 503 content-type application/problem+json lf-string '{problem}' hdr x-request-id %[unique-id]
    default_backend router

backend router
    server cargo-lambda 127.0.0.1:{router}

listen replies
    bind 127.0.0.1:{replies}
    # A function waits for its next request as long as there is none.
    timeout client 24d
    timeout server 24d
    # A process that is gone must not be handed a request, and none may hold up another's replies.
    option abortonclose
    http-reuse never
    # Without a router a connection ends, as it does at the router itself: functions take any answer for a request.
    errorfile 502 /dev/null
    errorfile 503 /dev/null
    server cargo-lambda 127.0.0.1:{router} proto h2
"""
PROBLEM = (
    '{"type":"urn:problem:unavailable","title":"The service is not available","status":503,'
    '"detail":"The router of the local stack is down.","code":"unavailable","requestId":"%[unique-id]"}'
)

MALFORMED = (
    "content-type application/problem+json hdr x-request-id %[unique-id] lf-string '"
    '{"type":"urn:problem:validation_failed","title":"Some fields are not valid","status":400,'
    '"detail":"A header has characters outside ASCII.","code":"validation_failed","requestId":"%[unique-id]",'
    '"errors":[{"field":"headers","code":"malformed","message":"Must be ASCII."}]}'
    "'"
)


def program(profile: Profile) -> Program:
    """HAProxy with this stack's ports."""
    path: Path = profile.dir / "router" / "haproxy.cfg"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = configuration(profile)
    path.write_text(text)
    # It reads the file when it starts: with another one it starts anew.
    read = {"CONFIGURATION": bundle.digest(text.encode())}
    return Program("front", [str(tools.haproxy()), "-db", "-f", str(path)], read, priority=35)


def configuration(profile: Profile) -> str:
    """What HAProxy listens to, passes on to, and changes."""
    ports = {"port": profile.port("router"), "router": profile.port("runtime"), "replies": profile.port("replies")}
    return CONFIGURATION.format(**ports, problem=PROBLEM, malformed=MALFORMED)
