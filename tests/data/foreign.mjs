// The loop of foreign.c for WebAssembly: node foreign.mjs MODULE. stdin: sizes of memory, each followed by it; stdout:
// the status, and the memory afterwards.
import { readFileSync, readSync, writeSync } from "node:fs";

const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]));
const { memory, serve, __heap_base } = instance.exports;
const base = (__heap_base.value + 63) & ~63;

function transfer(move, file, bytes) {
  for (let done = 0; done < bytes.length; ) {
    const part = move(file, bytes, done, bytes.length - done);
    if (part === 0) process.exit(0);
    done += part;
  }
  return bytes;
}

for (;;) {
  const size = Number(new DataView(transfer(readSync, 0, new Uint8Array(8)).buffer).getBigUint64(0, true));
  const missing = base + size - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / 65536));
  transfer(readSync, 0, new Uint8Array(memory.buffer, base, size));
  const status = new DataView(new ArrayBuffer(8));
  status.setBigInt64(0, BigInt(serve(base)), true);
  transfer(writeSync, 1, new Uint8Array(status.buffer));
  transfer(writeSync, 1, new Uint8Array(memory.buffer, base, size));
}
