// Files of the package, in browsers and in Node.
const onDisk = (url) => url.protocol === "file:";

/** All bytes of a file. */
export async function read(url) {
  if (onDisk(url)) return (await import("node:fs/promises")).readFile(url);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Reads a file of exactly `size` bytes piece by piece into what `target(offset, bytes)` gives: a Uint8Array. */
export async function readInto(url, size, target, onProgress) {
  let done = 0;
  const take = (piece) => {
    if (done + piece.length > size) throw new Error(`${url} has more than its ${size} bytes`);
    target(done, piece.length).set(piece);
    done += piece.length;
    onProgress?.(done, size);
  };
  if (onDisk(url)) {
    const { createReadStream } = await import("node:fs");
    for await (const piece of createReadStream(url, { highWaterMark: 1 << 22 })) take(piece);
  } else {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) take(part.value);
  }
  if (done !== size) throw new Error(`${url} ends after ${done} of its ${size} bytes`);
}

/** A thread that runs a module of this package. */
export async function startThread(url) {
  if (typeof Worker === "function") return new Worker(url, { type: "module" });
  const threads = await import("node:worker_threads");
  const worker = new threads.Worker(url, { execArgv: [] }); // what the program was started with may not suit it
  worker.unref();
  return worker;
}
