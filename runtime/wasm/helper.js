// A thread of a model: another instance of its module over the same memory, which waits for work until it is ended.
const start = ({ module, memory, imports, prefix, stack, tls }) => {
  const stubs = Object.fromEntries(imports.map((name) => [name, () => 0]));
  const { exports } = new WebAssembly.Instance(module, { env: { memory }, wasi_snapshot_preview1: stubs });
  exports.__stack_pointer.value = stack;
  exports.__wasm_init_tls(tls);
  exports[`${prefix}_js_help`]();
};

if (typeof self !== "undefined" && typeof self.postMessage === "function") {
  self.onmessage = ({ data }) => start(data);
} else {
  const { parentPort } = await import("node:worker_threads");
  parentPort.once("message", start);
}
