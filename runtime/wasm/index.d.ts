/** A model compiled by inferc. Units: positions and counts are in tokens. Failed calls throw an Error with one line. */

export interface Facts {
  readonly name: string;
  readonly vocabulary: number;
  /** Most positions of a session. */
  readonly context: number;
  /** Most tokens of one `Session.eval`. */
  readonly chunk: number;
}

export interface LoadOptions {
  /** Default: one for each processor, at most 8. One where memory cannot be shared: in browsers a page must be
   * cross-origin isolated (COOP and COEP headers) for more. */
  threads?: number;
  /** Told of the weights' bytes as they arrive. */
  onProgress?: (done: number, total: number) => void;
}

/** How each token is chosen; by default the likeliest. The same seed gives the same text. */
export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  /** How many of the last tokens the penalty looks at. Default: 64. */
  repetitionWindow?: number;
  seed?: number;
}

export interface GenerateOptions extends Sampling {
  maxTokens?: number;
  signal?: AbortSignal;
}

export interface Message {
  role: "system" | "user" | "assistant" | (string & {});
  content: string;
}

/** A flag of `Model.tokenize` for what `formatChat` gives: special tokens are parsed, no second one begins the text. */
export const CHAT_FORMAT: number;

/** Runs where it is called, which it blocks while it computes: use it in Node or inside of a Web Worker. */
export class Model {
  static load(options?: LoadOptions & { /** Where the package's files are. */ base?: URL }): Promise<Model>;
  readonly threads: number;
  readonly facts: Facts;
  tokenize(text: string, flags?: number): number[];
  /** Whether the package has the model's chat format, so that `chat` and `formatChat` answer. */
  readonly hasChat: boolean;
  /** The conversation in the model's format, up to where the assistant is to answer. */
  formatChat(messages: Message[]): string;
  /** Pieces of the text that continues the prompt: one for each token, empty while a character is not complete, and the
   * rest. With a session, what it holds of the prompt is not evaluated again. */
  generate(prompt: string, options?: GenerateOptions & { session?: Session }): AsyncGenerator<string>;
  /** Pieces of the assistant's answer. */
  chat(messages: Message[], options?: GenerateOptions & { session?: Session }): AsyncGenerator<string>;
  session(positions?: number): Session;
  /** A session as it was saved. Throws for what is damaged or of another model. */
  restore(saved: Uint8Array, positions?: number): Session;
  /** Ends the threads. The memory goes with the object. */
  close(): void;
}

/** One text that a model is reading or writing. */
export class Session {
  readonly position: number;
  readonly capacity: number;
  /** Evaluates at most `Facts.chunk` ids; the logits [rows × vocabulary] of the last `rows` of them. */
  eval(ids: number[], rows?: number): Float32Array;
  /** Evaluates any number of ids; the logits of the last. */
  feed(ids: number[]): Float32Array;
  /** Makes the session hold exactly these ids; the logits of the last. */
  resume(ids: number[]): Float32Array;
  /** Goes back; to 0 where a windowed layer has forgotten that position. The new position. */
  rewind(position: number): number;
  save(): Uint8Array;
  free(): void;
}

/** A model in a Web Worker of its own, for pages. */
export class RemoteModel {
  static load(options?: LoadOptions): Promise<RemoteModel>;
  readonly threads: number;
  readonly facts: Facts;
  readonly hasChat: boolean;
  /** As of `Model`. */
  generate(prompt: string, options?: GenerateOptions): AsyncGenerator<string>;
  chat(messages: Message[], options?: GenerateOptions): AsyncGenerator<string>;
  close(): void;
}
