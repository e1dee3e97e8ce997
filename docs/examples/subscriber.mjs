// Part verdicts of a line, gaps filled: node subscriber.mjs tcp://127.0.0.1:5601 tcp://127.0.0.1:5602
// Needs: npm install zeromq@6 @msgpack/msgpack@3. What docs/wire.md says, in one page.

import { decode, encode } from "@msgpack/msgpack";
import { Dealer, Subscriber } from "zeromq";

const [endpoint, replay] = process.argv.slice(2);
const topic = "part/";
let streamId = "";
let seen = -1; // the last seq that was handled; a real application keeps both in a file

function read(body) {
  const message = decode(body, { useBigInt64: false });
  if (message.v !== 1) throw new Error(`version ${message.v} found, expected 1: update this reader`);
  return message;
}

function handle(row) {
  if (row.seq <= seen) return;
  seen = row.seq;
  console.log(row.seq, row.label, row.reason, row.part_id);
}

async function fetchRows(upto) {
  const rows = new Dealer({ linger: 0, receiveTimeout: 2000 });
  rows.connect(replay);
  try {
    while (seen < upto) {
      const ask = { v: 1, kind: "ask", stream_id: streamId, topic, after: seen, limit: 500 };
      await rows.send(encode(ask));
      const [head, ...bodies] = await rows.receive();
      const answer = read(head);
      if (answer.kind !== "rows" || !answer.known) return; // the next heartbeat tries again
      if (bodies.length === 0) seen = upto; // none of this topic
      for (const body of bodies) {
        const row = read(body);
        if (row.prev_seq > seen && row.prev_seq >= answer.began) console.log("missed", seen, row.seq);
        handle(row);
      }
    }
  } catch (error) {
    console.error(String(error)); // the next heartbeat tries again
  } finally {
    rows.close();
  }
}

const live = new Subscriber();
live.connect(endpoint);
live.subscribe(topic, "heartbeat/");
for await (const [, body] of live) {
  const message = read(body);
  if (message.stream_id !== streamId) {
    const first = streamId === "";
    streamId = message.stream_id;
    seen = first ? (message.kind === "heartbeat" ? (message.last[topic] ?? 0) : message.prev_seq) : 0;
  }
  if (message.kind === "heartbeat") await fetchRows(message.last[topic] ?? 0);
  else if (message.prev_seq > seen) await fetchRows(message.seq);
  else handle(message);
}
