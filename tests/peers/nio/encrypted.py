"""matrix-nio users of two homeservers in an encrypted room: messages each way, every one-time key
handed out once, and a device that was added during an outage is found afterwards.

Usage: encrypted.py BASE_NEAR BASE_FAR. Prints `outage` when the near server is to be killed and `over`
when it is to be started again. Ends with status 0 and a line `ok` when everything was as expected.
"""

import asyncio
import sys
import tempfile
import time
import uuid

import aiohttp
from nio import AsyncClient, AsyncClientConfig, RoomMessageText, responses

MESSAGES = 10
CLAIMS = 10
PASSWORD = "correct horse battery staple"
# What was done on one server shows on the other within so many seconds.
PATIENCE = 60


def expect(response, kind):
    assert isinstance(response, kind), f"expected {kind.__name__}, got {response!r}"
    return response


def client_of(base, user, folder):
    config = AsyncClientConfig(encryption_enabled=True, request_timeout=60)
    return AsyncClient(base, user, store_path=tempfile.mkdtemp(dir=folder), config=config)


async def register(base, name, folder):
    username = f"{name}-{uuid.uuid4().hex[:8]}"
    client = client_of(base, username, folder)
    expect(await client.register(username, PASSWORD, f"{name}'s laptop"), responses.RegisterResponse)
    await sync(client)
    return client


async def sync(client, timeout=0):
    """One sync and the chores that follow from it."""
    synced = expect(await client.sync(timeout=timeout), responses.SyncResponse)
    if client.should_upload_keys:
        expect(await client.keys_upload(), responses.KeysUploadResponse)
    if client.should_query_keys:
        expect(await client.keys_query(), responses.KeysQueryResponse)
    return synced


async def until(what, client, found):
    """Syncs until something is found in an answer."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        result = found(await sync(client, 1_000))
        if result:
            return result
    raise AssertionError(f"{client.user_id} never got {what}")


async def share_room(alice, bob):
    encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    created = await alice.room_create(invite=[bob.user_id], initial_state=[encryption])
    room = expect(created, responses.RoomCreateResponse).room_id
    await until("the invite", bob, lambda synced: room in synced.rooms.invite)
    expect(await bob.join(room), responses.JoinResponse)
    for client in (alice, bob):

        def both(_):
            here = client.rooms.get(room)
            return here and here.encrypted and {alice.user_id, bob.user_id} <= set(here.users)

        await until("both members of an encrypted room", client, both)
    return room


async def say(client, room, body):
    content = {"msgtype": "m.text", "body": body}
    sent = await client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
    expect(sent, responses.RoomSendResponse)


async def hear(client, room, bodies):
    """Waits until all these texts came, encrypted and in this order."""
    heard = []

    def all_there(synced):
        if room in synced.rooms.join:
            events = synced.rooms.join[room].timeline.events
            texts = [event for event in events if isinstance(event, RoomMessageText)]
            heard.extend(event.body for event in texts if event.decrypted and event.body in bodies)
        return len(heard) >= len(bodies)

    await until(f"{len(bodies)} messages", client, all_there)
    assert heard == bodies, heard


async def exchange(alice, bob, room):
    for speaker, listener in ((alice, bob), (bob, alice)):
        bodies = [f"{speaker.user_id} says {number}" for number in range(MESSAGES)]
        for body in bodies:
            await say(speaker, room, body)
        await hear(listener, room, bodies)


async def claim(session, client, target):
    body = {"one_time_keys": {target.user_id: {target.device_id: "signed_curve25519"}}}
    headers = {"Authorization": f"Bearer {client.access_token}"}
    url = f"{client.homeserver}/_matrix/client/v3/keys/claim"
    async with session.post(url, json=body, headers=headers) as answer:
        claimed = (await answer.json())["one_time_keys"]
    keys = claimed.get(target.user_id, {}).get(target.device_id, {})
    return [(name, key["key"]) for name, key in keys.items()]


async def claim_keys(alice, bob):
    """Both servers hand out the same device's keys at the same time."""
    async with aiohttp.ClientSession() as session:
        claims = [claim(session, by, bob) for _ in range(CLAIMS) for by in (alice, bob)]
        keys = [key for keys in await asyncio.gather(*claims) for key in keys]
    assert len(keys) == 2 * CLAIMS, f"{len(keys)} keys for {2 * CLAIMS} claims"
    assert len(set(keys)) == len(keys), "a one-time key was handed out twice"


async def answers(base, wanted):
    """Waits until a server answers, or does not."""
    end = time.monotonic() + PATIENCE
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            try:
                async with session.get(f"{base}/_matrix/client/versions") as answer:
                    well = answer.status == 200
            except aiohttp.ClientError:
                well = False
            if well == wanted:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"{base} should {'' if wanted else 'not '}answer")


async def add_a_device(near, alice, bob, room, folder):
    print("outage")
    await answers(near, False)
    phone = client_of(bob.homeserver, bob.user_id, folder)
    expect(await phone.login(PASSWORD, "bob's phone"), responses.LoginResponse)
    await sync(phone)
    print("over")
    await answers(near, True)
    # What the near server says tells the far one that it is back.
    await say(alice, room, "I am back")

    def found(_):
        return phone.device_id in alice.device_store[bob.user_id]

    await until("the new device", alice, found)
    await say(alice, room, "to both of your devices")
    for device in (bob, phone):
        await hear(device, room, ["to both of your devices"])
    return phone


async def main(near, far):
    with tempfile.TemporaryDirectory() as folder:
        clients = [await register(near, "alice", folder), await register(far, "bob", folder)]
        try:
            alice, bob = clients
            room = await share_room(alice, bob)
            await exchange(alice, bob, room)
            await claim_keys(alice, bob)
            clients.append(await add_a_device(near, alice, bob, room, folder))
            print("ok")
        finally:
            for client in clients:
                await client.close()


asyncio.run(main(*sys.argv[1:]))
