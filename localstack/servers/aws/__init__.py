"""The local AWS: MiniStack, made durable and a little closer to the real thing.

MiniStack is used as published. What it lacks for this project is added from
outside, one module per concern, each saying what it changes and why:

- ``latency``: the waits that would dominate every local request;
- ``rest_api``: what SAM puts into an API's OpenAPI body and MiniStack drops;
- ``queues``: SQS that loses nothing, and event source mappings that batch;
- ``durability``: state that survives ``kill -9``, not only a clean shutdown;
- ``journal``: the file in which SQS and DynamoDB survive;
- ``orphans``: functions that a killed emulator left behind;
- ``actions``: which IAM actions a call needs;
- ``permissions``: functions that may do what their roles allow, and nothing else;
- ``resources``: resource types that are accepted without being emulated.
"""
