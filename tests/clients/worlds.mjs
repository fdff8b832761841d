// What several suites do in the example applications: a board of tasks, and a wiki, in which each test
// has users and rows of its own.

import { id, uuid } from "./socket.mjs";

/** A board of tasks, for `stage`. */
export function board(stage) {
  const sql = (text, values) => stage.query(text, values);

  /** A user nobody has seen before. */
  const person = async (name) => {
    const sub = id(name[0]);
    const email = `${sub}@example.org`;
    await sql("insert into tasks.users values ($1, $2, $3)", [sub, email, name]);
    return { sub, email };
  };
  const member = (workspaceId, { sub }, role) =>
    sql("insert into tasks.workspace_members (workspace_id, user_id, role) values ($1, $2, $3)", [
      workspaceId,
      sub,
      role,
    ]);

  /** A workspace of Ann's with a project and a task; Ben is a member of it, and Eve has one of her own. */
  const world = async () => {
    const [ann, ben, eve] = [await person("ann"), await person("ben"), await person("eve")];
    const ids = { workspaceId: id("w"), projectId: id("p"), taskId: id("t") };
    const own = { workspaceId: id("w"), projectId: id("p"), taskId: id("t") };
    for (const [{ workspaceId, projectId, taskId }, owner] of [[ids, ann], [own, eve]]) {
      await sql("insert into tasks.workspaces values ($1, 'Work', $2)", [workspaceId, owner.sub]);
      await member(workspaceId, owner, "owner");
      await sql("insert into tasks.projects values ($1, $2, 'Project')", [projectId, workspaceId]);
      await sql("insert into tasks.tasks (id, project_id, title) values ($1, $2, 'Task')", [taskId, projectId]);
    }
    await member(ids.workspaceId, ben, "member");
    await stage.settle();
    return { ...ids, own, ann, ben, eve };
  };

  const rename = (taskId, title) => sql("update tasks.tasks set title = $2 where id = $1", [taskId, title]);

  /** A tab of the user's, in these rooms if any are named. */
  const join = async (user, rooms, options) => {
    const tab = await stage.open(user, options);
    if (rooms) await tab.done("room:join", rooms);
    return tab;
  };

  let fences = 0;
  /** Whoever is in the task's or its project's room has heard all that came before. */
  const fence = async (taskId, ...tabs) => {
    const title = `fence ${++fences}`;
    await rename(taskId, title);
    for (const tab of tabs) await tab.next("task:updated", ({ changes }) => changes.title === title);
  };
  /** The same for whoever is in no room but his own. */
  const post = async ({ sub }, tab) => {
    const type = `fence.${++fences}`;
    await sql("insert into tasks.notifications (user_id, type) values ($1, $2)", [sub, type]);
    await tab.next("notification:created", (payload) => payload.type === type);
  };

  return { person, member, world, rename, join, fence, post };
}

/** A wiki, for `stage`. */
export function wiki(stage) {
  const sql = (text, values) => stage.query(text, values);

  const base = async ({ sub }) => {
    const [kbId, nodeId] = [uuid(), uuid()];
    await sql("insert into wiki.knowledge_bases (id, name, created_by) values ($1, 'Base', $2)", [kbId, sub]);
    await sql("insert into wiki.nodes (id, kb_id, title) values ($1, $2, 'Node')", [nodeId, kbId]);
    return { kbId, nodeId };
  };
  const member = (kbId, { sub }, role) => sql("insert into wiki.kb_members values ($1, $2, $3)", [kbId, sub, role]);

  /** A knowledge base of Ann's with a node; Ben writes in it. Eve has one of her own. */
  const world = async () => {
    const people = { ann: { sub: uuid() }, ben: { sub: uuid() }, eve: { sub: uuid() } };
    const [kb, own] = [await base(people.ann), await base(people.eve)];
    await member(kb.kbId, people.ben, "writer");
    await stage.settle();
    return { ...people, ...kb, own };
  };

  /** Each is an event, and a version more. */
  const rename = (nodeId, title) => sql("update wiki.nodes set title = $2 where id = $1", [nodeId, title]);

  /** A tab of the user's, in the knowledge base. */
  const join = async (user, kbId, options) => {
    const tab = await stage.open(user, options);
    await tab.done("kb.join", { kbId });
    return tab;
  };

  let fences = 0;
  /** Whoever is in the room of the node's knowledge base has heard all that came before. */
  const fence = async (nodeId, ...tabs) => {
    const title = `fence ${++fences}`;
    await rename(nodeId, title);
    for (const tab of tabs) await tab.next("node.updated", (payload) => payload.title === title);
  };

  /** The versions of nodes that this tab was told of. */
  const versions = (tab) => tab.all("node.updated").map(({ version }) => version);

  return { member, world, rename, join, fence, versions };
}
