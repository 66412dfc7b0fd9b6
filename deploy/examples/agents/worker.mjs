// The Node worker: knows nothing of tasks. `mayfly run --join OFFER --token WIKI_TOKEN_FILE=…` joined for it, and keeps
// a token in the file.
//
//     node worker.mjs URL
//
// Prints what it sees as JSON lines, and reads again, with the token that it had at first, for each line on standard
// input.
import { existsSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const url = process.argv[2];
const file = process.env.WIKI_TOKEN_FILE;
const say = (facts) => process.stdout.write(JSON.stringify(facts) + "\n");
const use = async (method, token) => {
  const answer = await fetch(url + "/page/7", { method, headers: { authorization: `Bearer ${token}` } });
  await answer.arrayBuffer();
  return answer.status;
};

const token = readFileSync(file, "utf8");
say({ task: process.env.MAYFLY_TASK });
say({ read: await use("GET", token) });
say({ write: await use("POST", token) });
for await (const _ of createInterface({ input: process.stdin })) {
  say({ read_later: await use("GET", token), file: existsSync(file) });
}
