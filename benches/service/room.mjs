// Socket.IO's own server, for comparison: whoever asks for it joins a room, and each line on standard
// input is a number of messages that the room is told. It prints its port, and ends with its input.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// Installed where the client tests have their packages.
const require = createRequire(new URL("../../tests/clients/package.json", import.meta.url));
const { Server } = require("socket.io");

const [, , topic, event, noteBytes] = process.argv;
const note = "x".repeat(Number(noteBytes));

const http = createServer();
const server = new Server(http, { transports: ["websocket"] });
server.on("connection", (socket) => {
  socket.on("join", ({ topic }, answer) => {
    socket.join(topic);
    answer({ ok: true, data: null });
  });
});

// As long as those of the other server.
let id = 1_000_000;
const cursor = "0000000000000000-00000000-00000000";
createInterface({ input: process.stdin })
  .on("line", (count) => {
    for (let n = 0; n < Number(count); n += 1) {
      id += 1;
      server.to(topic).emit(event, { id, note }, { cursor });
    }
  })
  .on("close", () => process.exit(0));

http.listen(0, "127.0.0.1", () => console.log(http.address().port));
