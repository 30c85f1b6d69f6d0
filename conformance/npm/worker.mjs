// The worker of the official TypeScript SDK as a program: one session at a time,
// its tools run as plain processes in the working directory. It is a subject of
// the conformance kit.
import Anthropic from "@anthropic-ai/sdk";
import { EnvironmentWorker } from "@anthropic-ai/sdk/lib/environments/index.mjs";

const idleMs = 1000; // how long it stays with a session after its turn

const leave = new AbortController();
process.once("SIGTERM", () => leave.abort());
process.once("SIGINT", () => leave.abort());

const worker = new EnvironmentWorker({
  client: new Anthropic({ apiKey: null, authToken: process.env.ANTHROPIC_ENVIRONMENT_KEY, baseURL: process.env.ANTHROPIC_BASE_URL }),
  environmentId: process.env.ANTHROPIC_ENVIRONMENT_ID,
  environmentKey: process.env.ANTHROPIC_ENVIRONMENT_KEY,
  workdir: process.cwd(),
  maxIdleMs: idleMs,
  memorySyncIntervalMs: 5000,
});

try {
  await worker.run(leave.signal);
} catch (err) {
  if (!leave.signal.aborted) {
    console.error(err);
    process.exitCode = 1;
  }
}
