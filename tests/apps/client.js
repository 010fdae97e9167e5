// SPDX-License-Identifier: Apache-2.0
// A client without instrumentation: node client.js URL COUNT
"use strict";

async function main([url, count]) {
  for (let i = 0; i < Number(count); i++) {
    const response = await fetch(url);
    await response.text();
    if (!response.ok) throw new Error(`${url}: ${response.status}`);
  }
}

main(process.argv.slice(2));
