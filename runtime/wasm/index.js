// A compiled model in JavaScript: `Model` runs where it is called (in Node, or inside of a Web Worker), `RemoteModel` in
// a Web Worker of its own. index.d.ts says what everything means.
import { facts } from "./model.js";
import { readInto } from "./files.js";
import { canShare, Native, processors } from "./native.js";

export { RemoteModel } from "./remote.js";

/** A flag of `tokenize` for what `formatChat` gives. */
export const CHAT_FORMAT = 8;
const encode = (text) => new TextEncoder().encode(text);

export class Model {
  #native;
  #handle;
  #choosing;

  static async load({ threads, base = new URL("./", import.meta.url), onProgress } = {}) {
    const model = new Model();
    model.threads = canShare() ? threads ?? Math.min(await processors(), 8) : 1;
    const file = model.threads > 1 ? facts.modules.threads : facts.modules.single;
    const native = (model.#native = await Native.load(new URL(file, base), facts.prefix, model.threads));
    const { bytes } = facts.weights;
    const weights = native.take(bytes);
    await readInto(new URL(facts.weights.file, base), bytes, (i, n) => native.bytes(weights.at + i, n), onProgress);
    const out = native.take(4);
    native.check(native.c.js_open(weights.at, bytes, model.threads, out.at));
    model.#handle = native.u32(out.at)[0];
    model.#choosing = native.take(16 * facts.vocabulary);
    native.free(out);
    return model;
  }

  get facts() {
    return facts;
  }

  tokenize(text, flags = 0) {
    const { c } = this.#native;
    const bytes = encode(text);
    const size = c.tokenize_workspace_bytes(this.#handle, bytes.length) >>> 0;
    if (!size) throw new Error("this model has no tokenizer: give token ids");
    const [given, scratch] = [this.#native.copy(bytes), this.#native.take(size)];
    const ids = this.#native.counted(4, (at, room, count) =>
      c.tokenize(this.#handle, given.at, bytes.length, flags, scratch.at, size, at, room, count));
    const found = Array.from(this.#native.i32(ids.at, ids.count));
    this.#native.free(given, scratch, ids);
    return found;
  }

  formatChat(messages) {
    const { c } = this.#native;
    const kept = messages.flatMap(({ role, content }) => [encode(role), encode(content)].map((b) => this.#native.copy(b)));
    const turns = this.#native.take(12 * messages.length);
    messages.forEach(({ content }, i) => {
      this.#native.u32(turns.at + 12 * i, 3).set([kept[2 * i].at, kept[2 * i + 1].at, encode(content).length]);
    });
    const text = this.#native.counted(1, (at, room, count) =>
      c.chat(this.#handle, turns.at, messages.length, 1, at, room, count));
    const found = new TextDecoder().decode(this.#native.bytes(text.at, text.count).slice());
    this.#native.free(turns, text, ...kept);
    return found;
  }

  get hasChat() {
    try {
      return this.formatChat([{ role: "user", content: "?" }]) !== "";
    } catch {
      return false;
    }
  }

  session(positions = facts.context) {
    return new Session(this.#native, this.#handle, positions);
  }

  restore(saved, positions = facts.context) {
    return new Session(this.#native, this.#handle, positions, saved);
  }

  async *generate(prompt, { session, maxTokens = 256, signal, ...sampling } = {}) {
    const ids = this.tokenize(prompt);
    yield* this.#continue(ids, session, maxTokens, signal, sampling);
  }

  async *chat(messages, { session, maxTokens = 512, signal, ...sampling } = {}) {
    const ids = this.tokenize(this.formatChat(messages), CHAT_FORMAT);
    yield* this.#continue(ids, session, maxTokens, signal, sampling);
  }

  async *#continue(ids, given, maxTokens, signal, sampling) {
    const session = given ?? this.session(Math.min(facts.context, ids.length + maxTokens));
    const how = this.#sampling(sampling);
    const decoder = this.#native.take(this.#native.c.js_decoder_bytes());
    this.#native.bytes(decoder.at, this.#native.c.js_decoder_bytes()).fill(0);
    try {
      let logits = session.resume(ids);
      for (let made = 0; made < maxTokens && !signal?.aborted && ids.length < session.capacity; made++) {
        const id = this.#choose(logits, how, ids);
        if (this.#native.c.is_end(this.#handle, id)) break;
        ids.push(id);
        yield this.#decode(decoder, [id]);
        if (made + 1 < maxTokens) logits = session.feed([id]);
      }
      const rest = this.#decode(decoder, []);
      if (rest) yield rest;
    } finally {
      this.#native.free(how, decoder);
      if (!given) session.free();
    }
  }

  #sampling({ temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, repetitionWindow = 64, seed }) {
    const how = this.#native.take(this.#native.c.js_sampling_bytes());
    const drawn = seed ?? Math.floor(Math.random() * 2 ** 52);
    this.#native.c.js_sampling(how.at, temperature, topK, topP, minP, repetitionPenalty, repetitionWindow, drawn);
    return how;
  }

  #choose(logits, how, ids) {
    const native = this.#native;
    const recent = ids.slice(-1024);
    const [rows, past, out] = [native.take(4 * logits.length), native.take(4 * recent.length), native.take(4)];
    native.f32(rows.at, logits.length).set(logits);
    native.i32(past.at, recent.length).set(recent);
    const size = 16 * facts.vocabulary;
    native.check(native.c.sample(rows.at, how.at, past.at, recent.length, this.#choosing.at, size, out.at));
    const id = native.i32(out.at, 1)[0];
    native.free(rows, past, out);
    return id;
  }

  #decode(decoder, ids) {
    const native = this.#native;
    const given = native.take(4 * ids.length);
    native.i32(given.at, ids.length).set(ids);
    const text = native.counted(1, (at, room, count) =>
      native.c.detokenize(this.#handle, decoder.at, ids.length ? given.at : 0, ids.length, at, room, count));
    const found = new TextDecoder().decode(native.bytes(text.at, text.count).slice());
    native.free(given, text);
    return found;
  }

  close() {
    this.#native.c.close(this.#handle);
    this.#native.close();
  }
}

export class Session {
  #native;
  #model;
  #memory;
  #workspace;
  #ids = []; // that it holds

  constructor(native, model, positions, saved) {
    const bytes = native.c.session_bytes(positions) >>> 0;
    if (!bytes) throw new RangeError(`a session has 1 to ${facts.context} positions, not ${positions}`);
    const [memory, out] = [native.take(bytes), native.take(4)];
    this.#native = native;
    this.#model = model;
    const copy = saved && native.copy(saved);
    const status = saved
      ? native.c.restore(model, copy.at, saved.length, memory.at, bytes, out.at)
      : native.c.session_init(model, memory.at, bytes, out.at);
    native.free(out, copy);
    if (status) native.free(memory);
    native.check(status);
    this.#memory = memory;
  }

  get position() {
    return this.#native.c.position(this.#memory.at);
  }

  get capacity() {
    return this.#native.c.capacity(this.#memory.at);
  }

  rewind(position) {
    const to = position > 0 && position < this.#native.c.rewind_limit(this.#memory.at) ? 0 : position;
    this.#native.check(this.#native.c.rewind(this.#memory.at, to));
    this.#ids.length = Math.min(this.#ids.length, to);
    return to;
  }

  save() {
    const size = this.#native.c.save_bytes(this.#memory.at) >>> 0;
    const memory = this.#native.take(size);
    this.#native.check(this.#native.c.save(this.#model, this.#memory.at, memory.at, size));
    const saved = this.#native.bytes(memory.at, size).slice();
    this.#native.free(memory);
    return saved;
  }

  eval(ids, rows = 1) {
    const native = this.#native;
    const size = native.c.workspace_bytes(this.#model, ids.length, rows) >>> 0;
    if (!size) throw new RangeError(`a call takes 1 to ${facts.chunk} ids, not ${ids.length}`);
    if (size > (this.#workspace?.size ?? 0)) {
      native.free(this.#workspace);
      this.#workspace = { ...native.take(size), size };
    }
    const [given, logits] = [native.take(4 * ids.length), native.take(4 * rows * facts.vocabulary)];
    native.i32(given.at, ids.length).set(ids);
    const status = native.c.js_eval(this.#model, this.#workspace.at, size, this.#memory.at, given.at, ids.length, rows,
      logits.at);
    const found = native.f32(logits.at, rows * facts.vocabulary).slice();
    native.free(given, logits);
    native.check(status);
    this.#ids.push(...ids);
    return found;
  }

  feed(ids) {
    let logits;
    for (let i = 0; i < ids.length; i += facts.chunk) logits = this.eval(ids.slice(i, i + facts.chunk));
    return logits;
  }

  /** Makes the session hold exactly these ids, and evaluates only what it does not hold yet. */
  resume(ids) {
    let same = 0;
    while (same < ids.length - 1 && same < this.#ids.length && ids[same] === this.#ids[same]) same++;
    if (same < this.position) same = this.rewind(same);
    return this.feed(ids.slice(same));
  }

  free() {
    this.#native.free(this.#memory, this.#workspace);
  }
}
