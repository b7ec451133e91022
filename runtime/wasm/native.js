// The compiled module with its memory and threads; pointers are numbers. For index.js.
import { read, startThread } from "./files.js";

const ALIGNMENT = 64;
const STACK = 1 << 20; // bytes of a helper's
const PAGES = { initial: 512, maximum: 65535 }; // of shared memory, as the module was linked
const TOO_SMALL = 5; // the status SIZE
const NOT_THERE = 52; // what a function of WASI that is not there returns

/** Whether memory can be shared between threads here: in browsers the page must be cross-origin isolated. */
export const canShare = () => typeof SharedArrayBuffer === "function" && globalThis.crossOriginIsolated !== false;

export async function processors() {
  if (globalThis.navigator?.hardwareConcurrency) return navigator.hardwareConcurrency;
  return (await import("node:os")).availableParallelism();
}

export class Native {
  c = {}; // the module's functions, without the prefix
  #memory;
  #helpers = [];

  static async load(url, prefix, threads) {
    const native = new Native();
    const module = await WebAssembly.compile(await read(url));
    const needed = WebAssembly.Module.imports(module).filter((i) => i.module === "wasi_snapshot_preview1");
    const names = needed.map(({ name }) => name);
    const imports = { wasi_snapshot_preview1: Object.fromEntries(names.map((name) => [name, () => NOT_THERE])) };
    if (threads > 1) imports.env = { memory: new WebAssembly.Memory({ ...PAGES, shared: true }) };
    const { exports } = await WebAssembly.instantiate(module, imports);
    exports._initialize();
    native.#memory = imports.env?.memory ?? exports.memory;
    native.c = { malloc: exports.malloc, free: exports.free };
    for (const [name, f] of Object.entries(exports)) {
      if (name.startsWith(`${prefix}_`)) native.c[name.slice(prefix.length + 1)] = f;
    }
    for (let i = 1; i < threads; i++) {
      const helper = await startThread(new URL("./helper.js", import.meta.url));
      const stack = native.take(STACK).at + STACK;
      const tls = native.take(exports.__tls_size.value || 1).at;
      helper.postMessage({ module, memory: native.#memory, imports: names, prefix, stack, tls });
      native.#helpers.push(helper);
    }
    return native;
  }

  /** Memory at a multiple of 64: where it begins, and the block for `free`. */
  take(size) {
    const block = this.c.malloc(size + ALIGNMENT) >>> 0;
    if (!block) throw new Error(`no memory for ${size} bytes: give sessions fewer positions`);
    return { block, at: Math.ceil(block / ALIGNMENT) * ALIGNMENT };
  }

  free(...memories) {
    for (const memory of memories) if (memory) this.c.free(memory.block);
  }

  /** Views of the memory, until it grows. */
  bytes(at, count) {
    return new Uint8Array(this.#memory.buffer, at, count);
  }
  i32(at, count) {
    return new Int32Array(this.#memory.buffer, at, count);
  }
  u32(at, count = 1) {
    return new Uint32Array(this.#memory.buffer, at, count);
  }
  f32(at, count) {
    return new Float32Array(this.#memory.buffer, at, count);
  }

  /** Memory with these bytes, and a null after them. */
  copy(bytes) {
    const memory = this.take(bytes.length + 1);
    this.bytes(memory.at, bytes.length).set(bytes);
    this.bytes(memory.at + bytes.length, 1)[0] = 0;
    return memory;
  }

  check(status) {
    if (!status) return;
    const at = this.c.message(status) >>> 0;
    const all = this.bytes(0);
    throw new Error(new TextDecoder().decode(all.slice(at, all.indexOf(0, at))));
  }

  /** What `call(at, capacity, count)` writes, which is made again where `capacity` items are too few. Returns the memory
   * of `count` items of `size` bytes. */
  counted(size, call, capacity = 256) {
    const [counter, memory] = [this.take(4), this.take(size * capacity)];
    const status = call(memory.at, capacity, counter.at);
    const count = this.u32(counter.at)[0];
    this.free(counter);
    if (status === TOO_SMALL && count > capacity) {
      this.free(memory);
      return this.counted(size, call, count);
    }
    if (status) this.free(memory);
    this.check(status);
    return { ...memory, count };
  }

  close() {
    for (const helper of this.#helpers.splice(0)) helper.terminate();
  }
}
