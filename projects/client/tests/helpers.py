"""Small things the tests of streams share."""

import asyncio


def pictures(n):
    return [b"picture %d" % index for index in range(n)]


async def eventually(holds):
    for _ in range(5_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


class Sleeps:
    """Does not sleep, but remembers."""

    def __init__(self):
        self.waited_s = []

    async def __call__(self, seconds):
        self.waited_s.append(seconds)
        await asyncio.sleep(0)


async def frames_of(client, frames, **how):
    return [result.frame async for result in client.stream(frames, **how)]
