// Continues a text in Node, with the package that --emit wasm wrote: node main.mjs ./package "Once upon a time"
import { pathToFileURL } from "node:url";

const [folder, prompt = "The capital of France is"] = process.argv.slice(2);
const { Model } = await import(pathToFileURL(`${folder}/index.js`));
const model = await Model.load();
for await (const piece of model.generate(prompt, { maxTokens: 32 })) process.stdout.write(piece);
process.stdout.write("\n");
model.close();
