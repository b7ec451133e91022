// Answers the golden prompts of a WebAssembly package again: node replay.mjs PACKAGE. Prints the hashes as JSON.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

async function replay(folder) {
  const { Model } = await import(new URL("index.js", folder));
  const { golden } = JSON.parse(await readFile(new URL("manifest.json", folder), "utf8"));
  const model = await Model.load();
  const answers = golden.map(({ ids }) => {
    const session = model.session(ids.length);
    const hash = createHash("sha256");
    for (let i = 0; i < ids.length; i += model.facts.chunk) {
      const part = ids.slice(i, i + model.facts.chunk);
      hash.update(new Uint8Array(session.eval(part, part.length).buffer)); // the logits of every token
    }
    session.free();
    return { sha256: hash.digest("hex") };
  });
  model.close();
  return answers;
}

try {
  console.log(JSON.stringify(await replay(pathToFileURL(`${process.argv[2]}/`))));
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
