// An agent in Node, without any library: asks the Workload API over its socket and says who it is.
const http2 = require("node:http2");
const net = require("node:net");
const readline = require("node:readline");

const path = process.env.SPIFFE_ENDPOINT_SOCKET.replace("unix://", "");

function fetchIdentity() {
  return new Promise((resolve) => {
    const session = http2.connect("http://localhost", { createConnection: () => net.connect(path) });
    session.on("error", () => resolve("refused"));
    const request = session.request({
      ":method": "POST",
      ":path": "/SpiffeWorkloadAPI/FetchX509SVID",
      "content-type": "application/grpc",
      te: "trailers",
      "workload.spiffe.io": "true",
    });
    request.on("error", () => resolve("refused"));
    request.on("close", () => resolve("refused"));
    request.on("data", (bytes) => {
      const found = bytes.toString("latin1").match(/spiffe:\/\/[A-Za-z0-9._\/-]+/);
      if (found) resolve(`id ${found[0]}`);
    });
    request.end(Buffer.alloc(5));
  });
}

async function main() {
  console.log("args", ...process.argv.slice(2));
  console.log(await fetchIdentity());
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (line === "fetch") console.log(await fetchIdentity());
    if (line === "end") process.exit(0);
  }
}

main();
