"""Two matrix-nio users chat on a homeserver: register, create, invite, join, 100 messages each way,
edit, react, redact, upload and download a picture, page back, log out and in again.

Usage: chat.py BASE_URL. Ends with status 0 and a line `ok` when everything was as expected.
"""

import asyncio
import io
import struct
import sys
import uuid
import zlib

from nio import AsyncClient, AsyncClientConfig, RoomMessageText, RoomVisibility, responses

MESSAGES = 100
PASSWORD = "correct horse battery staple"
# One request of nio may take this many milliseconds.
TIMEOUT = 30_000


def expect(response, kind):
    assert isinstance(response, kind), f"expected {kind.__name__}, got {response!r}"
    return response


def picture():
    """A PNG of 64 × 48 pixels, every row another shade."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes([y * 5, 100, 255 - y * 5]) * 64 for y in range(48))
    header = struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


async def register(base, name):
    config = AsyncClientConfig(encryption_enabled=False, request_timeout=60)
    client = AsyncClient(base, "", config=config)
    username = f"{name}-{uuid.uuid4().hex[:8]}"
    expect(await client.register(username, PASSWORD, f"{name}'s laptop"), responses.RegisterResponse)
    expect(await client.sync(timeout=0, full_state=True), responses.SyncResponse)
    return client


async def send(client, room, body, extra=None):
    content = {"msgtype": "m.text", "body": body, **(extra or {})}
    sent = await client.room_send(room, "m.room.message", content)
    return expect(sent, responses.RoomSendResponse).event_id


async def receive(client, room, wanted):
    """Syncs until all wanted event ids came, and gives all events of the room in order."""
    seen, wanted = [], set(wanted)
    for _ in range(200):
        synced = expect(await client.sync(timeout=5_000), responses.SyncResponse)
        if room in synced.rooms.join:
            timeline = synced.rooms.join[room].timeline
            seen.extend(timeline.events)
            wanted -= {event.event_id for event in timeline.events}
            if timeline.limited and wanted:
                wanted -= {event.event_id for event in await page_back(client, room, timeline.prev_batch)}
        if not wanted:
            return seen
    raise AssertionError(f"{len(wanted)} events never came")


async def page_back(client, room, start, limit=17):
    """All events before a token, newest first."""
    events = []
    for _ in range(200):
        page = await client.room_messages(room, start, limit=limit)
        expect(page, responses.RoomMessagesResponse)
        events.extend(page.chunk)
        if not page.end or page.end == start:
            return events
        start = page.end
    raise AssertionError("paging back never ended")


async def share_room(alice, bob):
    created = await alice.room_create(
        visibility=RoomVisibility.private, name="Chat", topic="Testing", invite=[bob.user_id]
    )
    room = expect(created, responses.RoomCreateResponse).room_id
    invited = expect(await bob.sync(timeout=10_000), responses.SyncResponse)
    assert room in invited.rooms.invite, "the invite did not come through sync"
    expect(await bob.join(room), responses.JoinResponse)
    expect(await bob.sync(timeout=0), responses.SyncResponse)
    members = expect(await alice.joined_members(room), responses.JoinedMembersResponse)
    assert {member.user_id for member in members.members} == {alice.user_id, bob.user_id}
    return room


async def exchange(alice, bob, room):
    sent = []
    for number in range(MESSAGES):
        sent.append(await send(alice, room, f"alice {number}"))
        sent.append(await send(bob, room, f"bob {number}"))
    for reader in (alice, bob):
        await receive(reader, room, sent[-1:])
        newest = await reader.room_messages(room, reader.next_batch, limit=5)
        expect(newest, responses.RoomMessagesResponse)
        all_events = [e.event_id for e in await page_back(reader, room, reader.next_batch)]
        assert len(all_events) == len(set(all_events)), "an event came twice"
        in_order = [event for event in reversed(all_events) if event in set(sent)]
        assert in_order == sent, "messages are missing or out of order"
    return sent


async def relate(alice, bob, room, target):
    edit = {
        "m.new_content": {"msgtype": "m.text", "body": "alice, edited"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": target},
    }
    edited = await send(alice, room, "* alice, edited", edit)
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "👍"}}
    reacted = await bob.room_send(room, "m.reaction", reaction)
    reacted = expect(reacted, responses.RoomSendResponse).event_id
    again = await bob.room_send(room, "m.reaction", reaction)
    assert isinstance(again, responses.RoomSendError), "the same reaction was taken twice"
    doomed = await send(alice, room, "to be redacted")
    redaction = await alice.room_redact(room, doomed, reason="testing")
    redaction = expect(redaction, responses.RoomRedactResponse).event_id
    await receive(bob, room, [edited, reacted, redaction])
    gone = expect(await bob.room_get_event(room, doomed), responses.RoomGetEventResponse)
    assert gone.event.source["content"] == {}, "the redacted event kept its content"


async def share_picture(alice, bob, room):
    data = picture()
    uploaded, _ = await alice.upload(
        lambda *_: io.BytesIO(data), content_type="image/png", filename="shades.png", filesize=len(data)
    )
    uri = expect(uploaded, responses.UploadResponse).content_uri
    content = {"msgtype": "m.image", "body": "shades.png", "url": uri}
    sent = await alice.room_send(room, "m.room.message", content)
    await receive(bob, room, [expect(sent, responses.RoomSendResponse).event_id])
    downloaded = expect(await bob.download(mxc=uri), responses.DownloadResponse)
    assert downloaded.body == data, "the picture changed on its way"
    server, media = uri.removeprefix("mxc://").split("/")
    small = await bob.thumbnail(server, media, width=32, height=32)
    assert expect(small, responses.ThumbnailResponse).body, "the thumbnail is empty"


async def small_talk(alice, bob, room, event):
    expect(await alice.room_typing(room, True, 20_000), responses.RoomTypingResponse)
    expect(await bob.room_read_markers(room, event, event), responses.RoomReadMarkersResponse)
    expect(await alice.set_displayname("Alice the First"), responses.ProfileSetDisplayNameResponse)
    profile = expect(await bob.get_profile(alice.user_id), responses.ProfileGetResponse)
    assert profile.displayname == "Alice the First"


async def come_back(base, alice, room, sent):
    expect(await alice.logout(), responses.LogoutResponse)
    again = AsyncClient(base, alice.user_id)
    expect(await again.login(PASSWORD, "Alice's phone"), responses.LoginResponse)
    synced = expect(await again.sync(timeout=0, full_state=True), responses.SyncResponse)
    timeline = synced.rooms.join[room].timeline
    history = await page_back(again, room, timeline.prev_batch)
    bodies = [e.body for e in history + timeline.events if isinstance(e, RoomMessageText)]
    assert sum(body.startswith("bob ") for body in bodies) == MESSAGES
    assert set(sent) <= {event.event_id for event in history + timeline.events}
    return again


async def main(base):
    alice, bob = await register(base, "alice"), await register(base, "bob")
    try:
        room = await share_room(alice, bob)
        sent = await exchange(alice, bob, room)
        await relate(alice, bob, room, sent[0])
        await share_picture(alice, bob, room)
        await small_talk(alice, bob, room, sent[-1])
        old, alice = alice, await come_back(base, alice, room, sent)
        await old.close()
        print("ok")
    finally:
        await alice.close()
        await bob.close()


asyncio.run(main(sys.argv[1]))
