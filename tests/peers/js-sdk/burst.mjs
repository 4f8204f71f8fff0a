// A matrix-js-sdk user sends a burst while the server is killed and started again; the client's own
// sync goes on from its old token.
//
// Usage: node burst.mjs BASE_URL. Prints `bursting` when the server may be killed, and `ok` when every
// acknowledged event is in /messages exactly once, and nothing came twice through sync.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.env.HOMESERVER_NODE_MODULES, "x.js"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const sdk = await load("matrix-js-sdk");
const { logger } = await load("matrix-js-sdk/lib/logger.js");
logger.setLevel("silent");

const base = process.argv[2];
const MESSAGES = 120;
// A request is tried this often, half a second apart.
const TRIES = 120;

const pause = () => new Promise((resolve) => setTimeout(resolve, 500));

async function insist(what, request) {
    for (let tries = 0; tries < TRIES; tries++) {
        const answer = await request().catch(() => undefined);
        if (answer) return answer;
        await pause();
    }
    assert.fail(`${what} was never answered`);
}

const anonymous = sdk.createClient({ baseUrl: base });
const session = await anonymous.registerRequest({
    username: `burst-${Math.random().toString(36).slice(2, 10)}`,
    password: "a long pass phrase",
    auth: { type: "m.login.dummy" },
});
const { user_id: userId, access_token: accessToken, device_id: deviceId } = session;
const client = sdk.createClient({ baseUrl: base, userId, accessToken, deviceId });
const room = (await client.createRoom({ name: "Burst" })).room_id;

// What comes through sync, each id as often as it came. The client is started once.
const heard = [];
client.on(sdk.ClientEvent.Event, (event) => event.getType() === "m.room.message" && heard.push(event.getId()));
const prepared = new Promise((resolve) =>
    client.on(sdk.ClientEvent.Sync, (state) => state === "PREPARED" && resolve()),
);
await client.startClient({ initialSyncLimit: 20, pollTimeout: 10_000 });
await prepared;

// Beside the client's own queue, which would give up: under one transaction id until it is answered.
const acknowledged = [];
for (let number = 0; number < MESSAGES; number++) {
    if (number === MESSAGES / 10) console.log("bursting");
    const content = { msgtype: "m.text", body: `burst ${number}` };
    const place = `/rooms/${encodeURIComponent(room)}/send/m.room.message/t${number}`;
    const send = () => client.http.authedRequest("PUT", place, undefined, content);
    acknowledged.push((await insist(`message ${number}`, send)).event_id);
}
assert.equal(new Set(acknowledged).size, MESSAGES);

for (let tries = 0; !heard.includes(acknowledged.at(-1)); tries++) {
    assert(tries < TRIES, "sync did not go on from its old token");
    await pause();
}
assert.equal(new Set(heard).size, heard.length, "an event came twice through sync");

const found = [];
for (let from = null, pages = 0; ; pages++) {
    assert(pages < MESSAGES, "paging back never ended");
    const page = await client.createMessagesRequest(room, from, 25, sdk.Direction.Backward);
    found.push(...page.chunk.filter((event) => event.type === "m.room.message").map((event) => event.event_id));
    if (!page.end) break;
    from = page.end;
}
assert.deepEqual(found.reverse(), acknowledged, "not every acknowledged event is there exactly once");
console.log("ok");
process.exit(0);
