// Two matrix-js-sdk users, encryption on, chat on a homeserver: register, create, invite, join,
// 100 messages each way, edit, react, redact, upload and download a picture, page back, log out and
// in again; then some messages in an encrypted room.
//
// Usage: node chat.mjs BASE_URL, with NODE_PATH-like resolution through HOMESERVER_NODE_MODULES.
// Ends with status 0 and a line `ok` when everything was as expected.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const modules = process.env.HOMESERVER_NODE_MODULES;
const require = createRequire(path.join(modules, "x.js"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
await load("fake-indexeddb/auto");
const sdk = await load("matrix-js-sdk");
const { logger } = await load("matrix-js-sdk/lib/logger.js");
logger.setLevel("error");

const base = process.argv[2];
const password = "correct horse battery staple";
const MESSAGES = 100;
// How long to wait for one thing to come through sync, in milliseconds.
const PATIENCE = 60_000;

const unique = () => Math.random().toString(36).slice(2, 10);

async function register(name) {
    const client = sdk.createClient({ baseUrl: base });
    const username = `${name}-${unique()}`;
    const body = { username, password, initial_device_display_name: `${name}'s laptop` };
    const session = await client.registerRequest(body).then(
        () => assert.fail("registration took no user-interactive authentication"),
        (error) => error.data.session,
    );
    const answer = await client.registerRequest({ ...body, auth: { type: "m.login.dummy", session } });
    return start(answer);
}

async function start({ user_id: userId, access_token: accessToken, device_id: deviceId }) {
    const client = sdk.createClient({ baseUrl: base, userId, accessToken, deviceId, timelineSupport: true });
    await client.initRustCrypto({ cryptoDatabasePrefix: unique() });
    const prepared = until(client, sdk.ClientEvent.Sync, (state) => state === "PREPARED");
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, pollTimeout: 10_000 });
    await prepared;
    return client;
}

function until(emitter, event, wanted) {
    return new Promise((resolve, reject) => {
        const clock = setTimeout(() => done(reject, new Error(`no ${event} came`)), PATIENCE);
        const listen = (...values) => wanted(...values) && done(resolve, values);
        const done = (settle, value) => {
            clearTimeout(clock);
            emitter.off(event, listen);
            settle(value);
        };
        emitter.on(event, listen);
    });
}

/** Waits until a condition holds, looking after every event of the client. */
async function holds(client, what, condition) {
    if (condition()) return;
    const events = [sdk.RoomEvent.Timeline, sdk.RoomMemberEvent.Membership, sdk.RoomEvent.Receipt];
    events.push(sdk.RoomEvent.MyMembership, sdk.MatrixEventEvent.Decrypted, sdk.ClientEvent.Sync);
    await new Promise((resolve, reject) => {
        const clock = setTimeout(() => finish(reject, new Error(`never: ${what}`)), PATIENCE);
        const look = () => condition() && finish(resolve);
        const finish = (settle, value) => {
            clearTimeout(clock);
            events.forEach((event) => client.off(event, look));
            settle(value);
        };
        events.forEach((event) => client.on(event, look));
        look();
    });
}

const timeline = (client, room) => client.getRoom(room)?.getLiveTimeline().getEvents() ?? [];
const has = (client, room, id) => timeline(client, room).some((event) => event.getId() === id);

async function shareRoom(alice, bob, encrypted) {
    const initial_state = encrypted
        ? [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }]
        : [];
    const preset = sdk.Preset.PrivateChat;
    const created = await alice.createRoom({ name: "Chat", preset, invite: [bob.getUserId()], initial_state });
    const room = created.room_id;
    await holds(bob, "the invite", () => bob.getRoom(room)?.getMyMembership() === "invite");
    await bob.joinRoom(room);
    await holds(alice, "the join", () => alice.getRoom(room)?.getJoinedMemberCount() === 2);
    await holds(bob, "the own join", () => bob.getRoom(room)?.getMyMembership() === "join");
    return room;
}

async function exchange(alice, bob, room) {
    const sent = [];
    for (let number = 0; number < MESSAGES; number++) {
        sent.push((await alice.sendTextMessage(room, `alice ${number}`)).event_id);
        sent.push((await bob.sendTextMessage(room, `bob ${number}`)).event_id);
    }
    for (const reader of [alice, bob]) {
        await holds(reader, "the last message", () => has(reader, room, sent.at(-1)));
        while (await reader.paginateEventTimeline(reader.getRoom(room).getLiveTimeline(), { backwards: true, limit: 30 }));
        const ids = timeline(reader, room).map((event) => event.getId());
        assert.equal(new Set(ids).size, ids.length, "an event came twice");
        // An own message keeps the place of its local echo, so only the other's order is the server's.
        const others = (_, index) => (index % 2 === 0) === (reader === bob);
        const expected = sent.filter(others);
        assert.deepEqual(ids.filter((id) => expected.includes(id)), expected, "messages are missing or out of order");
        assert.equal(ids.filter((id) => sent.includes(id)).length, sent.length, "messages are missing");
        assert.equal(timeline(reader, room)[0].getType(), "m.room.create");
    }
    return sent;
}

async function relate(alice, bob, room, target) {
    const edit = await alice.sendMessage(room, {
        msgtype: "m.text",
        body: "* edited",
        "m.new_content": { msgtype: "m.text", body: "edited" },
        "m.relates_to": { rel_type: "m.replace", event_id: target },
    });
    const reaction = await bob.sendEvent(room, "m.reaction", {
        "m.relates_to": { rel_type: "m.annotation", event_id: target, key: "👍" },
    });
    const doomed = (await alice.sendTextMessage(room, "to be redacted")).event_id;
    await holds(bob, "the message to redact", () => has(bob, room, doomed));
    await alice.redactEvent(room, doomed);
    await holds(bob, "the edit", () => has(bob, room, edit.event_id));
    await holds(bob, "the reaction", () => has(bob, room, reaction.event_id));
    const gone = () => timeline(bob, room).find((event) => event.getId() === doomed)?.isRedacted();
    await holds(bob, "the redaction", gone);
    const fetched = await bob.fetchRoomEvent(room, doomed);
    assert.deepEqual(fetched.content, {});
}

async function sharePicture(alice, bob) {
    const data = Buffer.from(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
        "base64",
    );
    const { content_uri: uri } = await alice.uploadContent(new Blob([data]), { type: "image/png", name: "dot.png" });
    const url = bob.mxcUrlToHttp(uri, undefined, undefined, undefined, false, true, true);
    const answer = await fetch(url, { headers: { Authorization: `Bearer ${bob.getAccessToken()}` } });
    assert.equal(answer.status, 200);
    assert.equal(answer.headers.get("content-type"), "image/png");
    assert.deepEqual(Buffer.from(await answer.arrayBuffer()), data);
}

async function smallTalk(alice, bob, room) {
    const typed = until(bob, sdk.RoomMemberEvent.Typing, (_, member) => member.userId === alice.getUserId());
    await alice.sendTyping(room, true, 20_000);
    await typed;
    const last = timeline(bob, room).at(-1);
    await bob.sendReadReceipt(last);
    // Not getEventReadUpTo: it puts what the client made up from bob's own events above what the server
    // said, in the order of alice's local echoes.
    const read = () => alice.getRoom(room).getReadReceiptForUserId(bob.getUserId(), true)?.eventId === last.getId();
    await holds(alice, "the receipt", read);
}

async function comeBack(alice, room, sent) {
    const user = alice.getUserId();
    await alice.logout(true);
    const login = await sdk.createClient({ baseUrl: base }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
    });
    const again = await start(login);
    await holds(again, "the room after logging in", () => again.getRoom(room));
    while (await again.paginateEventTimeline(again.getRoom(room).getLiveTimeline(), { backwards: true, limit: 50 }));
    for (const id of sent) assert(has(again, room, id), `${id} is missing after logging in again`);
    return again;
}

async function whisper(alice, bob) {
    const room = await shareRoom(alice, bob, true);
    const members = alice.getRoom(room);
    await members.loadMembersIfNeeded();
    for (const [from, to] of [[alice, bob], [bob, alice]]) {
        const id = (await from.sendTextMessage(room, "for your eyes only")).event_id;
        const decrypted = () => {
            const event = timeline(to, room).find((event) => event.getId() === id);
            return event?.isEncrypted() && event.getContent().body === "for your eyes only";
        };
        await holds(to, "the decrypted message", decrypted);
    }
}

const [alice, bob] = [await register("alice"), await register("bob")];
const room = await shareRoom(alice, bob, false);
const sent = await exchange(alice, bob, room);
await relate(alice, bob, room, sent[0]);
await sharePicture(alice, bob);
await smallTalk(alice, bob, room);
const again = await comeBack(alice, room, sent);
await whisper(again, bob);
console.log("ok");
process.exit(0);
