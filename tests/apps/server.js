// SPDX-License-Identifier: Apache-2.0
// The tests' application on Node: node server.js PORT
"use strict";
const http = require("node:http");
const { setTimeout: sleep } = require("node:timers/promises");

function answer(response, status, body, kind = "text/plain") {
  response.writeHead(status, { "Content-Type": kind, "Content-Length": Buffer.byteLength(body) });
  response.end(body);
}

async function parts(response, kind, part, count, pauseMs) {
  response.writeHead(200, { "Content-Type": kind });
  for (let i = 0; i < count; i++) {
    if (i) await sleep(pauseMs);
    response.write(part);
  }
  response.end();
}

async function serve(request, response) {
  const url = new URL(request.url, "http://localhost");
  const [, route, item] = url.pathname.split("/");
  switch (route) {
    case "hello":
      return answer(response, 200, "hello\n");
    case "items":
      return answer(response, 200, JSON.stringify({ item: Number(item) }), "application/json");
    case "fail":
      return answer(response, 500, "failed\n");
    case "echo": {
      const body = [];
      for await (const chunk of request) body.push(chunk);
      return answer(response, 200, Buffer.concat(body), "application/octet-stream");
    }
    case "slow":
      await sleep(Number(url.searchParams.get("ms")));
      return answer(response, 200, "slow\n");
    case "stream":
      return parts(response, "text/plain", "part\n", 5, 150);
    case "sse":
      return parts(response, "text/event-stream", "data: event\n\n", 3, 300);
    default:
      return answer(response, 404, "missing\n");
  }
}

http.createServer(serve).listen(Number(process.argv[2]), "127.0.0.1");
