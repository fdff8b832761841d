// Runs every client test on one private Postgres: `node run.mjs [file…]`.
//
// WALCAST_TEST_DATABASE_URL names a superuser's URL of another server to use instead; it needs
// wal_level = logical and some free slots.

import { spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { availableParallelism, cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { BIN, says, start } from "./harness.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const files = process.argv.slice(2);
if (files.length === 0) files.push(...readdirSync(here).filter((name) => name.endsWith(".test.mjs")));

/**
 * How many files run at once. Each has a database, a slot, a server and a port of its own, and waits
 * more than it computes; the server has ten slots, and some files take two.
 */
function concurrency() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  // Before, Node decides.
  if (major < 20 || (major === 20 && minor < 10)) return [];
  const cores = availableParallelism?.() ?? cpus().length;
  return [`--test-concurrency=${Math.min(2 * cores, 4)}`];
}

const env = { ...process.env };
let postgres;
let directory;
let code = 1;
try {
  if (!env.WALCAST_TEST_DATABASE_URL) {
    directory = mkdtempSync(join(tmpdir(), "walcast-clients-"));
    // Started by root, Postgres runs as another user, who must get in.
    chmodSync(directory, 0o711);
    const args = ["dev", "--only-postgres", "--data-dir", join(directory, "dev")];
    // SIGINT, so that it takes its Postgres along.
    postgres = start(BIN, args, env, "SIGINT");
    const [, url] = await says(postgres, /^DATABASE_URL=(\S+)$/m, 120_000);
    env.WALCAST_TEST_DATABASE_URL = url;
  }
  const args = ["--test", ...concurrency(), ...files];
  const tests = spawn(process.execPath, args, { cwd: here, env, stdio: "inherit" });
  code = await new Promise((resolve) => tests.once("exit", (code) => resolve(code ?? 1)));
} finally {
  if (postgres) {
    postgres.kill("SIGINT");
    await postgres.ended.catch(() => {});
  }
  if (directory) rmSync(directory, { recursive: true, force: true });
}
process.exit(code);
