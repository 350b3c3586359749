// The pages in a real browser, beside the real daemon and a simulated cloud. What is asserted is what
// a person sees, and what is then in the queue.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Scene, TOKENS } from "./scene.mjs";

// Installed beside the build, not beside the tests.
const require = createRequire(join(process.env.BROWSER_MODULES ?? ".", "from-here.js"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
// Where pictures go: docs/images for the README, otherwise where nobody keeps them.
const PICTURES = process.env.PICTURES ?? "target/browser/pictures";

const GUARD = '[targets.default.guard]\nreboot = "10/1h"\n';
const EVIL = `"><img src=x onerror=alert(1)><script>alert(2)</script>`;
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 400, height: 800 };

let scene;
let browser;
/** Ids of servers, so that each test has its own. */
let servers;
const open = [];

before(async () => {
  scene = await Scene.open({ target: GUARD });
  await scene.until("the inventory is known", () => scene.servers().length >= 400);
  servers = scene.servers();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu"],
  });
});

after(async () => {
  await browser?.close();
  await scene?.close();
});

/** A page of a signed-in person, who notices every error. */
async function visit(role, { viewport = WIDE, colorScheme = "light", path = "/", scripts = true } = {}) {
  const context = await browser.newContext({ viewport, colorScheme, javaScriptEnabled: scripts });
  open.push(context);
  const page = await context.newPage();
  page.complaints = [];
  page.on("console", (message) => message.type() === "error" && page.complaints.push(message.text()));
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("dialog", (dialog) => page.complaints.push(`dialog: ${dialog.message()}`) && dialog.dismiss());
  await page.goto(`${scene.url}/login`);
  await page.fill("#token", TOKENS[role]);
  await Promise.all([page.waitForURL(`${scene.url}/`), page.click("main button")]);
  if (path !== "/") {
    await page.goto(scene.url + path);
  }
  return page;
}

function isContent(page) {
  assert.deepEqual(page.complaints, []);
}

async function sees(page, text, patience = 15_000) {
  await page.waitForFunction((text) => document.body.innerText.includes(text), text, { timeout: patience });
}

test("a wrong token is refused and a right one leads to the overview", async () => {
  const context = await browser.newContext();
  open.push(context);
  const page = await context.newPage();
  await page.goto(`${scene.url}/`);
  assert.equal(new URL(page.url()).pathname, "/login");
  await page.fill("#token", "no-token-of-anybody-at-all");
  await page.click("main button");
  assert.match(await page.innerText('[role="alert"]'), /token is wrong/);
  await page.fill("#token", TOKENS.reader);
  await page.click("main button");
  await page.waitForURL(`${scene.url}/`);
  assert.equal(await page.innerText("h1"), "Overview");
});

test("the overview changes without being loaded again", async () => {
  const page = await visit("reader");
  await page.evaluate(() => (globalThis.isStillHere = true));
  scene.run("enqueue", "stop", ...servers.slice(0, 60), "--label", "evac");
  await sees(page, "60 off");
  assert.equal(await page.evaluate(() => globalThis.isStillHere), true);
  assert.equal(await page.innerText("#live"), "Live.");
  isContent(page);
});

test("who follows a failure from the title to the request finds the command", async () => {
  scene.run("enqueue", "stop", "no-such-server", "nor-such-a-one", "--ids", "--label", "evac");
  const page = await visit("reader");
  await page.waitForFunction(() => document.title.startsWith("(2 failed)"), undefined, { timeout: 15_000 });
  await page.click("#errors table a >> nth=0");
  await page.waitForURL(/\/requests\?.*error=poweryard.missing/);
  assert.equal(await page.locator("#requests tbody tr").count(), 2);
  await page.click("#requests tbody tr >> nth=0 >> a >> nth=0");
  await sees(page, "the cloud has no such server in this project");
  const id = new URL(page.url()).pathname.split("/").pop();
  await sees(page, `poweryard retry ${id}`);
  await page.click("dl >> text=evac");
  await page.waitForURL(/\/label\/evac/);
  await sees(page, "60 off, 2 failed of 62 servers.");
  isContent(page);
});

test("the filter and the search find what they are asked for", async () => {
  const page = await visit("reader", { path: "/requests" });
  await page.selectOption("#filter-state", "succeeded");
  await page.fill("#filter-server", servers[0]);
  await page.click("form.filter button");
  await page.waitForURL(/state=succeeded/);
  assert.equal(await page.locator("#requests tbody tr").count(), 1);
  const name = scene.json("inventory").find((server) => server.server_id === servers[0]).name;
  await page.fill("#search", name);
  await page.click("form.search button");
  await page.waitForURL(new RegExp(`/server/${name}`));
  await sees(page, servers[0]);
  await page.fill("#search", "evac");
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/label\/evac/);
  const missing = await page.goto(`${scene.url}/request/999999`);
  assert.equal(missing.status(), 404);
  assert.match(await page.innerText("main"), /there is no request 999999/);
});

test("an operator approves by typing the number", async () => {
  scene.run("enqueue", "reboot", ...servers.slice(100, 130), "--label", "kernel");
  const page = await visit("operator");
  await sees(page, "for approval");
  await page.click("#waiting >> text=Approve these");
  await page.waitForURL(/\/act\?deed=approve/);
  assert.match(await page.innerText("table"), /reboot\s+queued\s+30/);
  await page.fill("#requests", "29");
  await page.click("button.deed");
  assert.match(await page.innerText('[role="alert"]'), /Nothing was done: you confirmed 29, and it is 30 requests now/);
  assert.ok(scene.json("list", "--label", "kernel").every((request) => request.approved_by === null));
  await page.fill("#requests", "30");
  await page.fill("#reason", "as planned");
  await page.click("button.deed");
  assert.match(await page.innerText('[role="status"]'), /30 requests approved/);
  assert.equal(await page.locator("tbody tr").count(), 30);
  assert.ok(scene.json("list", "--label", "kernel").every((request) => request.approved_by === "operator"));
  isContent(page);
});

test("an operator cancels all that matches and is told of each", async () => {
  scene.run("pause", "--action", "start", "--reason", EVIL);
  scene.run("enqueue", "start", ...servers.slice(0, 25), "--label", EVIL);
  const page = await visit("operator", { path: "/requests?state=queued&action=start" });
  await sees(page, EVIL);
  await page.click("p.deeds >> text=Cancel");
  assert.match(await page.innerText("button.deed"), /Cancel 25 requests/);
  await page.click("button.deed");
  assert.match(await page.innerText('[role="status"]'), /25 requests cancelled/);
  assert.equal(await page.locator("tbody tr").count(), 25);
  const states = scene.json("list", "--label", EVIL).map((request) => request.state);
  assert.deepEqual([...new Set(states)], ["cancelled"]);
  await page.goto(scene.url);
  await page.click("#holds >> text=End this pause");
  await page.click("button.deed");
  assert.match(await page.innerText('[role="status"]'), /1 pause ended/);
  isContent(page);
});

test("a reader is shown no buttons and is refused if they ask anyway", async () => {
  const page = await visit("reader", { path: "/label/evac" });
  assert.equal(await page.locator(".deed").count(), 0);
  const asked = await page.goto(`${scene.url}/act?deed=cancel&label=evac`);
  assert.equal(asked.status(), 403);
  assert.match(await page.innerText("main"), /needs a token of the role operator/);
  await page.goto(scene.url);
  const sent = await page.evaluate(async () => {
    const token = document.querySelector('[name="form_token"]').value;
    const body = new URLSearchParams({ deed: "cancel", label: "evac", requests: "62", form_token: token });
    return (await fetch("/act", { method: "POST", body })).status;
  });
  assert.equal(sent, 403);
});

test("an operator's form without its session's token does nothing", async () => {
  scene.run("pause", "--label", "held-back");
  scene.run("enqueue", "stop", servers[200], "--label", "held-back");
  const page = await visit("operator");
  const sent = await page.evaluate(async () => {
    const body = new URLSearchParams({ deed: "cancel", label: "held-back", requests: "1" });
    return (await fetch("/act", { method: "POST", body })).status;
  });
  assert.equal(sent, 403);
  assert.equal(scene.json("list", "--label", "held-back")[0].state, "queued");
});

test("pages fit and are accessible in both sizes, light and dark", async () => {
  const failed = scene.json("list", "--state", "failed")[0].id;
  const paths = [
    "/",
    "/requests?state=failed,cancelled",
    `/request/${failed}`,
    `/server/${servers[0]}`,
    "/label/evac",
    "/search?q=bms",
    "/act?deed=cancel&label=held-back",
  ];
  for (const [viewport, colorScheme] of [[WIDE, "light"], [NARROW, "dark"], [WIDE, "dark"], [NARROW, "light"]]) {
    const page = await visit("operator", { viewport, colorScheme });
    for (const path of paths) {
      await page.goto(scene.url + path);
      const where = `${path} at ${viewport.width}, ${colorScheme}`;
      const [width, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(width <= room, `${where}: ${width} of ${room}`);
      if ((viewport === WIDE) !== (colorScheme === "light")) {
        continue;
      }
      // The policy forbids to add a script to the page; a browser's own world is no part of it.
      await page.evaluate(AXE);
      const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      const violations = found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" ")}`);
      assert.deepEqual(violations, [], where);
    }
    isContent(page);
  }
});

test("the pages work by keyboard and without scripts", async () => {
  const page = await visit("reader");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "content");
  const plain = await visit("reader", { scripts: false });
  assert.match(await plain.innerText("#headline"), /off/);
  assert.equal(await plain.innerText("#live"), "Read again");
  await plain.click("text=Failures");
  assert.match(await plain.innerText("main"), /poweryard.missing/);
});

test("a hidden page asks for nothing until it is seen again", async () => {
  const page = await visit("reader");
  await sees(page, "Live.");
  await page.evaluate(() => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
    document.dispatchEvent(new Event("visibilitychange"));
  });
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  scene.run("enqueue", "stop", ...servers.slice(300, 310), "--label", "unseen", "--wait");
  assert.deepEqual(asked, []);
  assert.ok(!(await page.innerText("#headline")).includes("70 off"));
  await page.evaluate(() => {
    delete document.hidden;
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await sees(page, "70 off");
});

test("pictures for the README", async () => {
  mkdirSync(PICTURES, { recursive: true });
  scene.run("resume", "--all");
  scene.run("pause", "--action", "start", "--reason", "the rack is being moved");
  scene.run("enqueue", "start", ...servers.slice(0, 12), "--label", "rack-7");
  scene.run("enqueue", "reboot", ...servers.slice(310, 345), "--label", "kernel-6.18");
  const page = await visit("operator", { viewport: { width: 1280, height: 1000 } });
  scene.run("enqueue", "stop", ...servers.slice(200, 300), "--label", "evac");
  await page.waitForSelector("#batches progress");
  await sees(page, "35 for approval");
  await page.screenshot({ path: join(PICTURES, "page.png") });
  const narrow = await visit("reader", { viewport: { width: 400, height: 860 }, colorScheme: "dark", path: "/label/evac" });
  await narrow.screenshot({ path: join(PICTURES, "page-narrow.png") });
});

test("the page says so when the daemon is gone, and when it is back", async () => {
  const page = await visit("reader");
  await sees(page, "Live.");
  await scene.kill();
  await sees(page, "The daemon does not answer since");
  assert.match(await page.innerText("#headline"), /off/);
  await scene.serve();
  // A new daemon knows no sessions.
  await sees(page, "You are signed out");
});
