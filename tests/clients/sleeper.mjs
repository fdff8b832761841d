// An application in a process of its own, which a test can put to sleep as a machine does: with its
// clocks, its timers and its sockets. It tells what it hears by broadcast, to whom it is awake for.
//
// node sleeper.mjs <url> <key> <topic> <options of the client's socket>

import { Feed, User, VERSIONS } from "./harness.mjs";

// The clients' timers keep no process running (see harness.mjs), and between sockets there is
// nothing else; whoever started this ends it.
setInterval(() => {}, 60_000);

const [url, anonKey, topic, options] = process.argv.slice(2);

for (const version of VERSIONS) {
  const user = new User(version, { url, anonKey }, undefined, JSON.parse(options));
  await user.signedIn;
  const config = { presence: { key: version.name } };
  const { channel } = new Feed(user, topic, [{ table: "todos" }], config, (feed, list, item) => {
    const tell = (event, payload) =>
      channel.send({ type: "broadcast", event, payload: { ...payload, who: version.name } });
    if (list === feed.statuses && item.status === "SUBSCRIBED") {
      // As applications do; presence is of one join.
      channel.track({ times: feed.statuses.filter(({ status }) => status === item.status).length });
    }
    if (list === feed.broadcasts && item.event === "ping") tell("pong", item.payload);
    if (list === feed.changes) tell("row", { id: item.new.id });
  });
}
