// A model in a Web Worker, so that the page stays responsive: the interface of `Model` for whole texts.
export class RemoteModel {
  #worker;
  #calls = new Map(); // by number: what is told of each message about it
  #number = 0;

  static async load({ threads, onProgress } = {}) {
    const model = new RemoteModel();
    model.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    model.#worker.onmessage = ({ data }) => model.#calls.get(data.call)?.(data);
    const loaded = await model.#call("load", { threads }, ({ progress }) => progress && onProgress?.(...progress));
    Object.assign(model, loaded);
    return model;
  }

  generate(prompt, options = {}) {
    return this.#stream("generate", prompt, options);
  }

  chat(messages, options = {}) {
    return this.#stream("chat", messages, options);
  }

  close() {
    this.#worker.terminate();
  }

  /** Sends a call; `told` hears of every message about it. Resolves with its result. */
  #call(name, argument, told) {
    const call = this.#number++;
    return new Promise((resolve, reject) => {
      this.#calls.set(call, (data) => {
        told?.(data);
        if (!("result" in data) && !data.error) return;
        this.#calls.delete(call);
        if (data.error) reject(new Error(data.error));
        else resolve(data.result);
      });
      this.#worker.postMessage({ call, name, argument });
    });
  }

  async *#stream(name, input, { signal, ...options }) {
    const pieces = [];
    let wake;
    let ended = false;
    const number = this.#number;
    const finished = this.#call(name, { input, options }, ({ piece }) => {
      if (piece !== undefined) pieces.push(piece);
      wake?.();
    });
    const stop = () => this.#worker.postMessage({ call: number, name: "stop" });
    signal?.addEventListener("abort", stop);
    const end = finished.finally(() => {
      ended = true;
      wake?.();
    });
    end.catch(() => {});
    try {
      while (!ended || pieces.length) {
        if (pieces.length) yield pieces.shift();
        else await new Promise((resolve) => (wake = resolve));
      }
      await finished;
    } finally {
      signal?.removeEventListener("abort", stop);
      if (!ended) stop();
    }
  }
}
