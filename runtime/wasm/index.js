// A compiled model in JavaScript: `Model` runs it where it is called (in Node, or inside of a Web Worker), `RemoteModel`
// runs it in a Web Worker of its own. The types and what they mean are in index.d.ts.
import { facts } from "./model.js";
import { read, readInto, startThread } from "./files.js";

const ALIGNMENT = 64;
const STACK = 1 << 20; // bytes of a helper's
const PAGES = { initial: 512, maximum: 65535 }; // of shared memory, as the module was linked with
const NOT_THERE = 52; // what a function of WASI that is not there returns

/** Whether memory can be shared between threads here: in browsers a page must be cross-origin isolated. */
const canShare = () => typeof SharedArrayBuffer === "function" && globalThis.crossOriginIsolated !== false;

async function processors() {
  if (globalThis.navigator?.hardwareConcurrency) return navigator.hardwareConcurrency;
  return (await import("node:os")).availableParallelism();
}

export class Model {
  #c; // the module's functions, without the prefix
  #memory;
  #handle;
  #workspace = { at: 0, size: 0 };
  #helpers = [];

  static async load({ threads, base = new URL("./", import.meta.url), onProgress } = {}) {
    const model = new Model();
    const count = canShare() ? threads ?? Math.min(await processors(), 8) : 1;
    await model.#instantiate(new URL(count > 1 ? facts.modules.threads : facts.modules.single, base), count);
    const at = model.#take(facts.weights.bytes);
    await readInto(new URL(facts.weights.file, base), facts.weights.bytes, (i, n) => model.#bytes(at + i, n), onProgress);
    const out = model.#take(4);
    model.#check(model.#c.js_open(at, facts.weights.bytes, count, out));
    model.#handle = model.#number(out);
    return model;
  }

  async #instantiate(url, threads) {
    const module = await WebAssembly.compile(await read(url));
    const needed = WebAssembly.Module.imports(module).filter((i) => i.module === "wasi_snapshot_preview1");
    const imports = { wasi_snapshot_preview1: Object.fromEntries(needed.map(({ name }) => [name, () => NOT_THERE])) };
    if (threads > 1) imports.env = { memory: new WebAssembly.Memory({ ...PAGES, shared: true }) };
    const { exports } = await WebAssembly.instantiate(module, imports);
    exports._initialize();
    this.threads = threads;
    this.#memory = imports.env?.memory ?? exports.memory;
    const own = `${facts.prefix}_`;
    this.#c = { malloc: exports.malloc, free: exports.free };
    for (const [name, f] of Object.entries(exports)) if (name.startsWith(own)) this.#c[name.slice(own.length)] = f;
    for (let i = 1; i < threads; i++) {
      const helper = await startThread(new URL("./helper.js", import.meta.url));
      const stack = this.#take(STACK) + STACK;
      const tls = this.#take(exports.__tls_size.value || 1);
      const names = needed.map(({ name }) => name);
      helper.postMessage({ module, memory: this.#memory, imports: names, prefix: facts.prefix, stack, tls });
      this.#helpers.push(helper);
    }
  }

  get facts() {
    return facts;
  }

  session(positions = facts.context) {
    return new Session(this.#inner(), positions);
  }

  restore(saved, positions = facts.context) {
    return new Session(this.#inner(), positions, saved);
  }

  close() {
    for (const helper of this.#helpers.splice(0)) helper.terminate();
    this.#c.close(this.#handle);
  }

  // ---- memory ----

  #bytes(at, size) {
    return new Uint8Array(this.#memory.buffer, at >>> 0, size);
  }

  #number(at) {
    return new Int32Array(this.#memory.buffer, at >>> 0, 1)[0] >>> 0;
  }

  /** Aligned memory; `free` is given what `allocate` returned. */
  #allocate(size) {
    const block = this.#c.malloc(size + ALIGNMENT) >>> 0;
    if (!block) throw new Error(`no memory for ${size} bytes: give sessions fewer positions`);
    return { block, at: Math.ceil(block / ALIGNMENT) * ALIGNMENT };
  }

  #take(size) {
    return this.#allocate(size).at;
  }

  #text(at) {
    const all = new Uint8Array(this.#memory.buffer);
    return new TextDecoder().decode(all.slice(at >>> 0, all.indexOf(0, at >>> 0)));
  }

  #check(status) {
    if (status) throw new Error(this.#text(this.#c.message(status)));
  }

  #reserve(size) {
    if (size > this.#workspace.size) {
      if (this.#workspace.block) this.#c.free(this.#workspace.block);
      this.#workspace = { size, ...this.#allocate(size) };
    }
    return this.#workspace.at;
  }

  /** What sessions use of a model. */
  #inner() {
    return {
      c: this.#c, handle: this.#handle, bytes: (at, n) => this.#bytes(at, n), number: (at) => this.#number(at),
      allocate: (size) => this.#allocate(size), check: (status) => this.#check(status),
      reserve: (size) => this.#reserve(size), memory: this.#memory,
    };
  }
}

export class Session {
  #m;
  #handle;
  #block;

  constructor(inner, positions, saved) {
    const bytes = inner.c.session_bytes(positions) >>> 0;
    if (!bytes) throw new RangeError(`a session has 1 to ${facts.context} positions, not ${positions}`);
    const memory = inner.allocate(bytes);
    const out = inner.allocate(4);
    this.#m = inner;
    this.#block = memory.block;
    try {
      if (saved) {
        const copy = inner.allocate(saved.length);
        inner.bytes(copy.at, saved.length).set(saved);
        const status = inner.c.restore(inner.handle, copy.at, saved.length, memory.at, bytes, out.at);
        inner.c.free(copy.block);
        inner.check(status);
      } else {
        inner.check(inner.c.session_init(inner.handle, memory.at, bytes, out.at));
      }
    } catch (error) {
      inner.c.free(memory.block);
      throw error;
    } finally {
      inner.c.free(out.block);
    }
    this.#handle = memory.at;
  }

  get position() {
    return this.#m.c.position(this.#handle);
  }

  rewind(position) {
    const limit = this.#m.c.rewind_limit(this.#handle);
    const to = position > 0 && position < limit ? 0 : position;
    this.#m.check(this.#m.c.rewind(this.#handle, to));
    return to;
  }

  save() {
    const { c, bytes, allocate, check, handle } = this.#m;
    const size = c.save_bytes(this.#handle) >>> 0;
    const memory = allocate(size);
    check(c.save(handle, this.#handle, memory.at, size));
    const saved = bytes(memory.at, size).slice();
    c.free(memory.block);
    return saved;
  }

  eval(ids, rows = 1) {
    const { c, handle, allocate, check, reserve, memory } = this.#m;
    const given = allocate(4 * ids.length);
    const logits = allocate(4 * rows * facts.vocabulary);
    try {
      new Int32Array(memory.buffer, given.at, ids.length).set(ids);
      const size = c.workspace_bytes(handle, ids.length, rows) >>> 0;
      if (!size) throw new RangeError(`a call takes 1 to ${facts.chunk} ids, not ${ids.length}`);
      check(c.js_eval(handle, reserve(size), size, this.#handle, given.at, ids.length, rows, logits.at));
      return new Float32Array(memory.buffer, logits.at, rows * facts.vocabulary).slice();
    } finally {
      c.free(given.block);
      c.free(logits.block);
    }
  }

  feed(ids) {
    let logits;
    for (let i = 0; i < ids.length; i += facts.chunk) logits = this.eval(ids.slice(i, i + facts.chunk));
    return logits;
  }

  free() {
    this.#m.c.free(this.#block);
  }
}
