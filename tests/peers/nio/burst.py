"""A matrix-nio user sends a burst while the server is killed and started again.

Usage: burst.py BASE_URL. Prints `bursting` when the burst has begun (the server may be killed from
then on), and `ok` when every acknowledged event is in /messages exactly once and sync went on from
the token of before. A send that fails is tried again under the same transaction id.
"""

import asyncio
import sys
import uuid

from nio import AsyncClient, AsyncClientConfig, responses

MESSAGES = 300
SENDERS = 4
# A send is tried this often, half a second apart.
TRIES = 120


async def send(client, room, number, acknowledged):
    transaction = uuid.uuid4().hex
    for _ in range(TRIES):
        content = {"msgtype": "m.text", "body": f"burst {number}"}
        try:
            answer = await client.room_send(room, "m.room.message", content, tx_id=transaction)
        except Exception:  # noqa: BLE001: whatever nio raises when the server is gone
            answer = None
        if isinstance(answer, responses.RoomSendResponse):
            acknowledged.append(answer.event_id)
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"message {number} was never acknowledged")


async def sync(client, since):
    for _ in range(TRIES):
        try:
            answer = await client.sync(timeout=0, since=since)
        except Exception:  # noqa: BLE001
            answer = None
        if isinstance(answer, responses.SyncResponse):
            return answer
        await asyncio.sleep(0.5)
    raise AssertionError("sync never came back")


async def events_after(client, room, since):
    synced = await sync(client, since)
    timeline = synced.rooms.join[room].timeline
    events = list(timeline.events)
    start = timeline.prev_batch
    while timeline.limited:
        page = await client.room_messages(room, start, end=since, limit=50)
        assert isinstance(page, responses.RoomMessagesResponse), repr(page)
        events.extend(page.chunk)
        if not page.end or not page.chunk:
            break
        start = page.end
    return events


async def main(base):
    config = AsyncClientConfig(encryption_enabled=False, max_timeouts=1, request_timeout=20)
    client = AsyncClient(base, "", config=config)
    registered = await client.register(f"burst-{uuid.uuid4().hex[:8]}", "a long pass phrase")
    assert isinstance(registered, responses.RegisterResponse), repr(registered)
    room = (await client.room_create(name="Burst")).room_id
    since = (await client.sync(timeout=0, full_state=True)).next_batch
    acknowledged = []

    async def sender(first):
        for number in range(first, MESSAGES, SENDERS):
            await send(client, room, number, acknowledged)
            if number == MESSAGES // 10:
                print("bursting", flush=True)

    await asyncio.gather(*(sender(first) for first in range(SENDERS)))
    assert len(set(acknowledged)) == MESSAGES
    events = [event.event_id for event in await events_after(client, room, since)]
    for event in acknowledged:
        assert events.count(event) == 1, f"{event} is there {events.count(event)} times"
    bodies = [event for event in events if event in set(acknowledged)]
    assert len(events) == len(bodies), "there are events that were never acknowledged"
    await client.close()
    print("ok")


asyncio.run(main(sys.argv[1]))
