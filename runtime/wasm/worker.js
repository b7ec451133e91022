// The other side of remote.js. Messages: {call, name, argument} in; {call, progress | piece | result | error} out.
import { CHAT_FORMAT, Model } from "./index.js";

let model;
const stops = new Map();

// Lets messages in: a generator that is never awaited for long would hear of no "stop".
const turn = new MessageChannel();
const breathe = () => new Promise((resolve) => {
  turn.port1.onmessage = resolve;
  turn.port2.postMessage(0);
});

async function stream(call, pieces) {
  for await (const piece of pieces) {
    postMessage({ call, piece });
    await breathe();
  }
}

// A conversation goes on in the session of the one before, so that only what is new in it is evaluated.
let kept;
let busy = false;

async function converse(call, messages, options) {
  if (busy) return stream(call, model.chat(messages, options));
  const needed = model.tokenize(model.formatChat(messages), CHAT_FORMAT).length + (options.maxTokens ?? 512);
  const most = model.facts.context;
  if (!(kept?.capacity >= Math.min(needed, most))) {
    kept?.free();
    kept = undefined;
    kept = model.session(Math.min(2 * needed, most));
  }
  busy = true;
  try {
    await stream(call, model.chat(messages, { ...options, session: kept }));
  } finally {
    busy = false;
  }
}

const commands = {
  async load(call, { threads }) {
    model = await Model.load({ threads, onProgress: (...progress) => postMessage({ call, progress }) });
    return { facts: model.facts, threads: model.threads, hasChat: model.hasChat };
  },
  generate: (call, { input, options }) => stream(call, model.generate(input, { ...options, signal: signal(call) })),
  chat: (call, { input, options }) => converse(call, input, { ...options, signal: signal(call) }),
};

function signal(call) {
  const controller = new AbortController();
  stops.set(call, controller);
  return controller.signal;
}

onmessage = async ({ data: { call, name, argument } }) => {
  if (name === "stop") return stops.get(call)?.abort();
  try {
    postMessage({ call, result: (await commands[name](call, argument)) ?? null });
  } catch (error) {
    postMessage({ call, error: error.message });
  } finally {
    stops.delete(call);
  }
};
