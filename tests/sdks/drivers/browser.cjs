// Opens a page in a real browser and does there what it is told, one JSON line after the other, each answered by one:
// {open, path}: a page of ours, on an origin of its own; {run}: the value of an expression there; {leave}: goes elsewhere;
// {offline}: with or without network; {requests}: what the pages have asked for. Ends with standard input.
"use strict";

const { createRequire } = require("module");
const fs = require("fs");
const http = require("http");
const path = require("path");
const readline = require("readline");

const packages = createRequire(path.join(process.env.SDK_MODULES, "driver.cjs"));
const { chromium } = packages("playwright-core");

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

// A promise of a page that never settles is a failure, not a hang.
function late() {
  return new Promise((_, fail) => setTimeout(() => fail(new Error("no answer within 30 seconds")), 30_000).unref());
}

// What pages are made of: HTML given by the test, and the files of an SDK's browser build.
function serve(state) {
  const server = http.createServer((request, response) => {
    const name = path.basename(request.url.split("?")[0]);
    const file = state.files && path.join(state.files, name);
    if (name.endsWith(".js") && file && fs.existsSync(file)) {
      response.writeHead(200, { "Content-Type": "text/javascript" });
      fs.createReadStream(file).pipe(response);
    } else {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
      response.end(state.html);
    }
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

async function main() {
  const state = { html: "", files: null };
  const server = await serve(state);
  const context = await chromium.launchPersistentContext(process.env.BROWSER_DATA, {
    executablePath: process.env.BROWSER,
    headless: true,
    ignoreHTTPSErrors: true,
    args: FLAGS,
  });
  const requests = [];
  const problems = [];
  context.on("request", (request) => requests.push({ method: request.method(), url: request.url() }));
  context.on("weberror", (error) => problems.push(String(error.error())));
  const page = context.pages()[0] ?? (await context.newPage());
  const origin = `http://127.0.0.1:${server.address().port}`;

  async function answer(order) {
    if ("open" in order) {
      Object.assign(state, { html: order.open, files: order.files });
      await page.goto(origin + order.path, { referer: order.referer ?? undefined });
      return { origin };
    }
    if ("run" in order) return Promise.race([page.evaluate(order.run), late()]);
    if ("offline" in order) return context.setOffline(order.offline);
    if ("leave" in order) return page.goto("about:blank").then(() => null);
    if ("requests" in order) return { requests, problems };
    throw new Error(`no such order: ${JSON.stringify(order)}`);
  }

  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      console.log(JSON.stringify({ value: (await answer(JSON.parse(line))) ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error) }));
    }
  }
  await context.close();
  server.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
