// Seed 001, a board of tasks: workspaces with projects, tasks and members. The numbers are those of
// its scenarios; 13, of two nodes, is not among them.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isDeepStrictEqual } from "node:util";

import { data } from "./rest.mjs";
import { Applications, TIME, exactly, having, id } from "./socket.mjs";
import { board } from "./worlds.mjs";

const ERROR = "connection:error";

describe("tasks", () => {
  const stage = new Applications("/tasks");
  const { person, member, world, rename, join, fence, post } = board(stage);

  test("001-1: a token is taken from auth or from the query, and none from nowhere", async () => {
    const ann = await person("ann");
    await stage.open(ann);
    const token = stage.pass(ann);
    const tab = stage.tab(undefined, { query: { token } });
    await tab.opened();
    const forged = stage.server.sign({ role: "authenticated", ...ann }, 3600, "x".repeat(48));
    for (const options of [
      {},
      { auth: { token: "nonsense" } },
      { auth: { token: forged } },
      { auth: { token: stage.pass(ann, -60) } },
      { query: { token: forged } },
    ]) {
      assert.ok((await stage.refusal(options)).length > 0);
    }
  });

  test("001-2: it begins with polling, may stay there, and goes on by WebSocket", async () => {
    const handshake = await fetch(`${stage.server.url}/socket.io/?EIO=4&transport=polling`);
    assert.equal(handshake.status, 200);
    const text = await handshake.text();
    assert.equal(text[0], "0");
    const { sid, ...said } = JSON.parse(text.slice(1));
    assert.equal(typeof sid, "string");
    having(said, { pingInterval: 25_000, pingTimeout: 20_000, upgrades: ["websocket"], maxPayload: Number });

    const { taskId, ann, ben } = await world();
    const polling = await join(ann, { taskId }, { transports: ["polling"] });
    const upgraded = stage.tab(ben, { transports: ["polling", "websocket"] });
    const { engine } = upgraded.socket.io;
    const upgrade = new Promise((resolve) => engine.once("upgrade", resolve));
    await upgraded.opened();
    await upgraded.done("room:join", { taskId });
    await fence(taskId, polling, upgraded);
    await upgrade;
    await fence(taskId, polling, upgraded);
    assert.equal(upgraded.socket.io.engine.transport.name, "websocket");
    assert.equal(polling.socket.io.engine.transport.name, "polling");
    assert.equal(polling.all("task:updated").length, 2);
    assert.equal(upgraded.all("task:updated").length, 2);
  });

  test("001-3: a stranger enters no room, and what is no id is none", async () => {
    const { workspaceId, projectId, taskId, own, ann, eve } = await world();
    const a = await join(ann, { taskId });
    const stranger = await join(eve, { taskId: own.taskId });
    for (const room of [{ workspaceId }, { projectId }, { taskId }]) {
      await stranger.denied("room:join", room, "ACCESS_DENIED", ERROR);
    }
    for (const room of [{ taskId: "NO ID" }, { taskId: `${taskId}:x` }, { projectId: "*" }, {}]) {
      await stranger.denied("room:join", room, "VALIDATION_FAILED", ERROR);
    }
    await fence(taskId, a);
    await fence(own.taskId, stranger);
    assert.equal(stranger.all("task:updated").length, 1);
  });

  test("001-4: who shares a workspace is told when a user comes and goes, not each tab", async () => {
    const { taskId, ann, ben, eve } = await world();
    const a = await join(ann, { taskId });
    const stranger = await join(eve);
    const of = (name) => a.all(name).filter(({ userId }) => userId === ben.sub);
    const is = ({ userId }) => userId === ben.sub;
    const first = await join(ben, { taskId });
    exactly(await a.payload("presence:user_online", is), { userId: ben.sub, status: "online", timestamp: TIME });
    const second = await join(ben, { taskId });
    await fence(taskId, a, second);
    assert.equal(of("presence:user_online").length, 1);
    first.close();
    await fence(taskId, a, second);
    assert.deepEqual(of("presence:user_offline"), []);
    second.close();
    exactly(await a.payload("presence:user_offline", is), { userId: ben.sub, status: "offline", timestamp: TIME });
    await post(eve, stranger);
    const heard = [...stranger.all("presence:user_online"), ...stranger.all("presence:user_offline")];
    assert.deepEqual(heard.filter(({ userId }) => userId !== eve.sub), []);
  });

  test("001-5: a status is told to peers, and who looks at a task to those in it", async () => {
    const { taskId, ann, ben } = await world();
    const a = await join(ann, { taskId });
    const b = await join(ben, { taskId });
    await a.next("presence:user_online", ({ userId }) => userId === ben.sub);
    b.say("presence:update", { status: "away", userId: ann.sub });
    const away = await a.payload("presence:user_online", ({ status }) => status === "away");
    exactly(away, { userId: ben.sub, status: "away", timestamp: TIME });
    await b.denied("presence:update", { status: "nowhere" }, "VALIDATION_FAILED", ERROR);
    b.say("presence:viewing", { taskId });
    const users = (wanted) => (payload) => isDeepStrictEqual(payload.users, wanted);
    const viewing = await a.payload("presence:users_viewing", users([{ userId: ben.sub, email: ben.email }]));
    assert.equal(viewing.taskId, taskId);
    const from = a.mark;
    await b.done("room:leave", { taskId });
    assert.deepEqual(await a.payload("presence:users_viewing", users([]), from), { taskId, users: [] });
  });

  test("001-6: who types is shown to others until he stops, falls silent or is gone", async () => {
    const { taskId, ann, ben, eve, own } = await world();
    const a = await join(ann, { taskId });
    const b = await join(ben, { taskId });
    let from = 0;
    const typing = async () => {
      from = a.mark;
      b.say("typing:start", { taskId, userId: ann.sub });
      having(await a.payload("typing:user_typing", undefined, from), { taskId, userId: ben.sub });
    };
    const stopped = async () =>
      having(await a.payload("typing:user_stopped", undefined, from), { taskId, userId: ben.sub });
    await typing();
    b.say("typing:stop", { taskId });
    await stopped();
    await typing();
    await stopped();
    await typing();
    const stranger = await join(eve, { taskId: own.taskId });
    stranger.say("typing:start", { taskId });
    await stranger.next(ERROR, ({ code }) => code === "ACCESS_DENIED");
    await fence(taskId, a, b);
    b.close();
    await stopped();
    assert.deepEqual(b.names().filter((name) => name.startsWith("typing:")), []);
    const typists = [...a.all("typing:user_typing"), ...a.all("typing:user_stopped")];
    assert.deepEqual([...new Set(typists.map(({ userId }) => userId))], [ben.sub]);
  });

  test("001-7: a task that comes or goes is told in its project, not in the workspace", async () => {
    const { workspaceId, projectId, ann, ben } = await world();
    const project = await join(ben, { projectId });
    const workspace = await join(ben, { workspaceId });
    const [inProject, inWorkspace] = [
      await stage.listen(ben, `project:${projectId}`),
      await stage.listen(ben, `workspace:${workspaceId}`),
    ];
    const taskId = id("t");
    const rows = stage.rows(ann, "tasks").from("tasks");
    await data(rows.insert({ id: taskId, project_id: projectId, title: "New" }));
    await data(stage.rows(ann, "tasks").from("tasks").delete().eq("id", taskId));
    const created = await project.payload("task:created");
    having(created, { taskId, projectId, workspaceId, userId: ann.sub, timestamp: TIME });
    having(created.task, { id: taskId, projectId, title: "New", status: "TODO" });
    having(await project.payload("task:deleted"), { taskId, task: null, userId: ann.sub });
    const events = ({ broadcasts }) => broadcasts.map(({ event }) => event);
    await inProject.broadcast(1);
    assert.deepEqual(events(inProject), ["task:created", "task:deleted"]);
    await workspace.next("activity:created", ({ verb }) => verb === "task.deleted");
    await inWorkspace.broadcast(1);
    assert.deepEqual(events(inWorkspace), ["activity:created", "activity:created"]);
    assert.deepEqual(workspace.names().filter((name) => name.startsWith("task:")), []);
  });

  test("001-8: a change is told once to whoever is in several of its rooms", async () => {
    const { projectId, taskId, ann, ben } = await world();
    const b = await join(ben, { projectId, taskId });
    const from = b.mark;
    const rows = () => stage.rows(ann, "tasks").from("tasks");
    await data(rows().update({ title: "Other" }).eq("id", taskId));
    await data(rows().update({ status: "DONE" }).eq("id", taskId));
    await fence(taskId, b);
    const told = b.names(from).filter((name) => name.startsWith("task:"));
    assert.deepEqual(told, ["task:updated", "task:moved", "task:updated"]);
    const [updated] = b.all("task:updated", from);
    having(updated, { taskId, projectId, userId: ann.sub, changes: { title: "Other" } });
    const [moved] = b.all("task:moved", from);
    having(moved, { taskId, projectId, from: "TODO", to: "DONE", userId: ann.sub });
  });

  test("001-9: comments are told in the room of their task alone", async () => {
    const { projectId, taskId, ann, ben } = await world();
    const [task, project] = [await join(ann, { taskId }), await join(ann, { projectId })];
    const commentId = id("c");
    const rows = () => stage.rows(ben, "tasks").from("comments");
    await data(rows().insert({ id: commentId, task_id: taskId, body: "One" }));
    await data(rows().update({ body: "Two" }).eq("id", commentId));
    await data(rows().delete().eq("id", commentId));
    await fence(taskId, task, project);
    const about = { commentId, taskId, userId: ben.sub, timestamp: TIME };
    const [created] = task.all("comment:created");
    having(created, about);
    having(created.comment, { id: commentId, taskId, authorId: ben.sub, body: "One" });
    const [updated] = task.all("comment:updated");
    having(updated, about);
    assert.equal(updated.comment.body, "Two");
    exactly(task.all("comment:deleted")[0], { ...about, comment: null });
    const comments = (tab) => tab.names().filter((name) => name.startsWith("comment:"));
    assert.deepEqual(comments(task), ["comment:created", "comment:updated", "comment:deleted"]);
    assert.deepEqual(comments(project), []);
  });

  test("001-10: members come, change and go, and who goes is out at once", async () => {
    const { workspaceId, projectId, taskId, own, ann } = await world();
    const a = await join(ann, { workspaceId });
    const cy = await person("cy");
    await member(own.workspaceId, cy, "viewer");
    const rows = () => stage.rows(ann, "tasks").from("workspace_members");
    const his = (query) => query.eq("workspace_id", workspaceId).eq("user_id", cy.sub);
    await data(rows().insert({ workspace_id: workspaceId, user_id: cy.sub, role: "member" }));
    const is = ({ userId }) => userId === cy.sub;
    const about = { workspaceId, userId: cy.sub, timestamp: TIME };
    exactly(await a.payload("member:joined", is), { ...about, role: "member" });
    const c = await join(cy, { workspaceId, projectId, taskId });
    await c.done("room:join", { taskId: own.taskId });
    await data(his(rows().update({ role: "admin" })));
    for (const tab of [a, c]) {
      const changed = await tab.payload("member:role_changed", is);
      exactly(changed, { ...about, role: "admin", previousRole: "member" });
    }
    await fence(taskId, c);
    await data(his(rows().delete()));
    having(await a.payload("member:left", is), about);
    const rooms = [`workspace:${workspaceId}`, `project:${projectId}`, `task:${taskId}`];
    for (const topic of rooms) {
      const revoked = ({ code, context }) => code === "ACCESS_REVOKED" && context.topic === topic;
      await c.next(ERROR, revoked);
    }
    const from = c.mark;
    await rename(taskId, "secret");
    await fence(own.taskId, c);
    assert.equal(c.all("task:updated", from).length, 1);
    for (const room of [{ workspaceId }, { projectId }, { taskId }]) {
      await c.denied("room:join", room, "ACCESS_DENIED", ERROR);
    }
  });

  test("001-11: who is given a task is told, and nobody else; the workspace sees that it was", async () => {
    const { workspaceId, taskId, ann, ben } = await world();
    const [a, b] = [await join(ann, { workspaceId }), await join(ben)];
    await data(stage.rows(ann, "tasks").from("tasks").update({ assignee_id: ben.sub }).eq("id", taskId));
    const { type, data: about, userId } = await b.payload("notification:created");
    assert.deepEqual([type, userId, about.taskId], ["task.assigned", ben.sub, taskId]);
    having(await a.payload("activity:created"), { verb: "task.updated", taskId, actorId: ann.sub });
    await post(ann, a);
    assert.equal(a.all("notification:created").length, 1);
    assert.deepEqual(b.all("activity:created"), []);
    await data(
      stage.rows(ben, "tasks").from("notifications").update({ read_at: new Date() }).eq("user_id", ben.sub),
    );
    having(await b.payload("notification:read"), { type: "task.assigned", readAt: TIME });
  });

  test("001-12: supabase-js hears the same rooms, and is present in them", async () => {
    const { workspaceId, projectId, taskId, ann, ben } = await world();
    const topic = `workspace:${workspaceId}`;
    const feed = await stage.listen(ann, `project:${projectId}`);
    await data(stage.rows(ben, "tasks").from("tasks").update({ status: "DONE" }).eq("id", taskId));
    const { event, payload } = await feed.broadcast(0);
    assert.deepEqual([event, payload.to], ["task:moved", "DONE"]);
    const a = await stage.listen(ann, topic, { presence: { key: ann.sub } });
    const b = await stage.listen(ben, topic, { presence: { key: ben.sub } });
    assert.equal(await b.channel.track({ status: "online" }), "ok");
    await a.moved("join", ({ key }) => key === ben.sub);
    assert.equal(a.present()[ben.sub][0].status, "online");
  });

  test("001-14: it is healthy, it counts, and a flood is refused without ending anything", async () => {
    for (const path of ["/health", "/metrics"]) {
      assert.equal((await stage.fetch(undefined, path)).status, 200, path);
    }
    const { taskId, ann, ben } = await world();
    const [a, b] = [await join(ann, { taskId }), await join(ben, { taskId })];
    for (let n = 0; n < 500; n += 1) b.say("typing:start", { taskId });
    const { message } = await b.payload(ERROR, ({ code }) => code === "RATE_LIMITED");
    assert.equal(typeof message, "string");
    await fence(taskId, a, b);
    assert.ok(b.socket.connected);
    assert.deepEqual(b.all("(disconnect)"), []);
    // It is for a while.
    for (;;) {
      const answer = await b.ask("room:join", { taskId });
      if (answer.ok) break;
      assert.equal(answer.error.code, "RATE_LIMITED");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
});
