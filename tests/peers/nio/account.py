"""What a matrix-nio user does beside chatting: registers with a token, chats with encryption on both
ways, changes the password, upgrades a room.

Usage: account.py BASE_URL TOKEN, on a server that asks for the registration token. Ends with status 0
and a line `ok` when everything was as expected.
"""

import asyncio
import sys
import tempfile

from nio import AsyncClient, AsyncClientConfig, RoomMessageText, responses

PASSWORD = "correct horse battery staple"
# Syncs until something is given up.
PATIENCE = 30


def expect(response, kind):
    assert isinstance(response, kind), f"expected {kind.__name__}, got {response!r}"
    return response


def client(base, store, user=""):
    config = AsyncClientConfig(encryption_enabled=True, request_timeout=60)
    return AsyncClient(base, user, store_path=store, config=config)


async def register(base, name, token, store):
    new = client(base, store)
    asked = await new.register_interactive(name, PASSWORD, {})
    assert "m.login.registration_token" in asked.stages, asked
    auth = {"type": "m.login.registration_token", "session": asked.session}
    refused = await new.register_interactive(name, PASSWORD, {**auth, "token": "no such token"})
    assert not refused.completed, "any token opens the door"
    # nio takes no session from the answer to a stage, so that it logs in then.
    await new.register_interactive(name, PASSWORD, {**auth, "token": token})
    new.user = name
    expect(await new.login(PASSWORD, f"{name}'s laptop"), responses.LoginResponse)
    await sync(new)
    return new


async def sync(reader, timeout=0):
    """One sync, and what encryption has to do after it."""
    expect(await reader.sync(timeout=timeout, full_state=timeout == 0), responses.SyncResponse)
    if reader.should_upload_keys:
        expect(await reader.keys_upload(), responses.KeysUploadResponse)
    if reader.should_query_keys:
        expect(await reader.keys_query(), responses.KeysQueryResponse)


async def whisper(sender, reader, room, text):
    heard = []

    async def listen(_, event):
        heard.append((event.body, event.decrypted, event.sender))

    reader.add_event_callback(listen, RoomMessageText)
    sent = await sender.room_send(
        room,
        "m.room.message",
        {"msgtype": "m.text", "body": text},
        ignore_unverified_devices=True,
    )
    expect(sent, responses.RoomSendResponse)
    for _ in range(PATIENCE):
        await sync(reader, timeout=2_000)
        if (text, True, sender.user_id) in heard:
            return
    raise AssertionError(f"{text!r} was never decrypted, heard {heard}")


async def share_secrets(alice, bob):
    encryption = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    created = await alice.room_create(invite=[bob.user_id], initial_state=[encryption])
    room = expect(created, responses.RoomCreateResponse).room_id
    await sync(bob)
    expect(await bob.join(room), responses.JoinResponse)
    for reader in (alice, bob, alice, bob):
        await sync(reader)
    await whisper(alice, bob, room, "for your eyes only")
    await whisper(bob, alice, room, "and for yours")


async def upgrade(alice):
    created = await alice.room_create(name="Old", room_version="10")
    old = expect(created, responses.RoomCreateResponse).room_id
    new = expect(await alice.room_upgrade(old, "12"), responses.RoomUpgradeResponse).room_id
    tombstone = expect(
        await alice.room_get_state_event(old, "m.room.tombstone"),
        responses.RoomGetStateEventResponse,
    )
    assert tombstone.content["replacement_room"] == new
    name = await alice.room_get_state_event(new, "m.room.name")
    assert expect(name, responses.RoomGetStateEventResponse).content["name"] == "Old"


async def change_password(base, alice, store):
    path = "/_matrix/client/v3/account/password"
    headers = {"Authorization": f"Bearer {alice.access_token}"}
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": PASSWORD,
    }
    wish = {"new_password": "another pass phrase", "auth": auth}
    async with alice.client_session.post(base + path, json=wish, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    again = client(base, store, alice.user_id)
    assert isinstance(await again.login(PASSWORD), responses.LoginError), "the old password counts"
    expect(await again.login("another pass phrase"), responses.LoginResponse)
    await again.close()


async def main(base, token):
    with tempfile.TemporaryDirectory() as store:
        alice = await register(base, "alice", token, store)
        bob = await register(base, "bob", token, store)
        try:
            await share_secrets(alice, bob)
            await upgrade(alice)
            await change_password(base, alice, store)
            print("ok")
        finally:
            await alice.close()
            await bob.close()


asyncio.run(main(sys.argv[1], sys.argv[2]))
