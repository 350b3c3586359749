// A simulated cloud, the real daemon on a fresh queue, and producers: what the tests look at.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, writeFileSync, rmSync, chmodSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAM = process.env.POWERYARD ?? "target/debug/poweryard";
/** One for each role. */
export const TOKENS = {
  operator: "an-operators-token-of-the-browser-test",
  reader: "a-readers-token-of-the-browser-test",
};
const PROJECT = "bbf1946d374b44a0a2a95533562ba954";

const SCENARIO = `
[bms]
servers = 400
running = 1.0
operation_ms = [300, 1500]

[latency]
job_ms = [5, 20]
`;

/** A port that nobody has at this moment. */
async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

export class Scene {
  static async open({ scenario = SCENARIO, target = "" } = {}) {
    const scene = new Scene();
    scene.dir = mkdtempSync(join(tmpdir(), "poweryard-browser-"));
    scene.port = await freePort();
    scene.url = `http://127.0.0.1:${scene.port}`;
    scene.config = scene.file("poweryard.toml");
    const cloud = await scene.simulate(scenario);
    scene.secret("access-key", "POWERYARDSIMAK");
    scene.secret("secret-key", "poweryard-sim-secret-key");
    for (const [role, token] of Object.entries(TOKENS)) {
      scene.secret(`${role}-token`, token);
    }
    writeFileSync(scene.config, scene.settings(cloud, target));
    await scene.serve();
    return scene;
  }

  file(name) {
    return join(this.dir, name);
  }

  secret(name, content) {
    writeFileSync(this.file(name), content);
    chmodSync(this.file(name), 0o600);
  }

  settings(cloud, target) {
    const token = (role) => `[[listen.tokens]]\nname = "${role}"\nrole = "${role}"\ntoken_file = "${this.file(`${role}-token`)}"\n`;
    return `
[queue]
database = "${this.file("queue.db")}"
[batch]
linger = "0ms"
[targets.default]
service = "bms"
endpoint = "${cloud}"
project_id = "${PROJECT}"
allow_http = true
submits_per_minute = 600
first_look = "100ms"
look_interval_max = "500ms"
batch_servers_max = 40
${target}
[targets.default.auth]
kind = "aksk"
access_key_file = "${this.file("access-key")}"
secret_key_file = "${this.file("secret-key")}"
[listen]
address = "127.0.0.1:${this.port}"
${token("operator")}${token("reader")}`;
  }

  async simulate(scenario) {
    writeFileSync(this.file("scenario.toml"), scenario);
    this.cloud = spawn(PROGRAM, ["simulate", "--listen", "127.0.0.1:0", "--scenario", this.file("scenario.toml")], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    return await new Promise((done, failed) => {
      this.cloud.stdout.once("data", (line) => done(String(line).trim()));
      this.cloud.once("exit", () => failed(new Error("the simulated cloud ended")));
    });
  }

  /** Starts the daemon and waits until it answers. */
  async serve() {
    this.daemon = spawn(PROGRAM, ["--config", this.config, "serve"], { stdio: ["ignore", "ignore", "pipe"] });
    this.log = "";
    this.daemon.stderr.on("data", (text) => (this.log += text));
    await this.until("the daemon is ready", async () => (await fetch(`${this.url}/readyz`).catch(() => null))?.ok);
  }

  async kill() {
    const ended = new Promise((done) => this.daemon.once("exit", done));
    this.daemon.kill("SIGKILL");
    await ended;
  }

  /** Runs a command of the program to its end; its output. */
  run(...args) {
    const ended = spawnSync(PROGRAM, ["--config", this.config, ...args], { encoding: "utf8", maxBuffer: 64 << 20 });
    if (ended.status !== 0) {
      throw new Error(`poweryard ${args.slice(0, 2).join(" ")}: ${ended.status}\n${ended.stderr}`);
    }
    return ended.stdout;
  }

  json(...args) {
    return JSON.parse(this.run(...args, "--json"));
  }

  servers() {
    return this.json("inventory").map((server) => server.server_id);
  }

  async until(what, isSo, patience = 20_000) {
    const end = Date.now() + patience;
    while (Date.now() < end) {
      if (await isSo()) {
        return;
      }
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`never: ${what}\n${this.log.slice(-2000)}`);
  }

  async close() {
    this.cloud?.kill("SIGKILL");
    this.daemon?.kill("SIGKILL");
    rmSync(this.dir, { recursive: true, force: true });
  }
}
