// One event stream, by the `EventSource` of browsers as npm has it.

import { EventSource } from "eventsource";

import { within } from "./harness.mjs";

/** A stream, and every event of these names that it hands out. */
export class Stream {
  constructor(server, token, parameters, names, options) {
    const query = new URLSearchParams({ access_token: token, ...parameters });
    this.source = new EventSource(`${server.url}/events?${query}`, options);
    this.events = [];
    this.opened = 0;
    this.waiting = new Set();
    this.source.addEventListener("open", () => (this.opened += 1));
    for (const name of ["ready", "caught_up", "gap", "close", "error", ...names]) {
      this.source.addEventListener(name, (event) => {
        this.events.push(event);
        for (const look of this.waiting) look();
      });
    }
  }

  /** The first event of this name, from the one with this number on. */
  next(name, from = 0) {
    const heard = new Promise((resolve) => {
      const look = () => {
        const found = this.events.slice(from).find((event) => event.type === name);
        if (!found) return;
        this.waiting.delete(look);
        resolve(found);
      };
      this.waiting.add(look);
      look();
    });
    return within(heard, () => `${name} among ${this.events.map((event) => event.type)}`);
  }

  of(name) {
    return this.events.filter((event) => event.type === name);
  }
}
