// Makes calls with a Node.js SDK: reads {sdk, writeKey, host, options, calls} from standard input, ends when all is sent.
"use strict";

const { createRequire } = require("module");
const path = require("path");

const packages = createRequire(path.join(process.env.SDK_MODULES, "driver.cjs"));

// Each SDK's client, and how it is told that there will be no more.
const sdks = {
  "@segment/analytics-node": segment,
  "analytics-node-3.0": segment,
  "@customerio/cdp-analytics-node": segment,
  "@rudderstack/rudder-sdk-node": rudderstack,
};

function segment({ sdk, writeKey, host, options }) {
  const { Analytics } = packages(sdk);
  const client = new Analytics({ writeKey, host, ...options });
  client.on("error", fail);
  return { client, end: () => client.closeAndFlush() };
}

function rudderstack({ sdk, writeKey, host, options }) {
  const Analytics = packages(sdk);
  const client = new Analytics(writeKey, { dataPlaneUrl: host, errorHandler: fail, ...options });
  return {
    client,
    end: async () => {
      while (client.queue.length) await client.flush();
      await client.flush();
    },
  };
}

function fail(error) {
  console.error(error);
  process.exitCode = 1;
}

async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const order = JSON.parse(text);
  const { client, end } = sdks[order.sdk](order);
  for (const { type, ...message } of order.calls) {
    if (message.timestamp) message.timestamp = new Date(message.timestamp);
    client[type](message);
  }
  await end();
}

main().catch(fail);
