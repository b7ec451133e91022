/* The model as a program: a prompt in, its continuation out, or a conversation. */
#define _POSIX_C_SOURCE 200809L

#include <time.h>

#if defined(_WIN32)
#include <io.h>
#define isatty _isatty
#else
#include <unistd.h>
#endif

#include "command.h"

typedef struct arguments {
  common common;
  const char *prompt, *system, *ids, *seed;
  int32_t tokens, context, top_k;
  double temperature, top_p, min_p, repetition_penalty;
  bool chat;
} arguments;

static const char usage[] =
    "Usage: %s [OPTION]...\n"
    "Continue a text, or talk, with the model in this program.\n\n"
    "  -p, --prompt TEXT     the text to continue; without it, what stdin has\n"
    "      --chat            talk: each line of stdin is answered; an empty one ends\n"
    "      --system TEXT     what the model is told before a conversation\n"
    "  -n, --tokens N        tokens to make at most [128]\n"
    "  -c, --context N       tokens of a conversation at most [the model's context]\n"
    "      --temp X          temperature; 0 takes the likeliest token [0]\n"
    "      --top-k N         choose among the N likeliest tokens; 0: all [0]\n"
    "      --top-p X         choose among the likeliest that sum to X [1]\n"
    "      --min-p X         drop tokens less likely than X times the likeliest [0]\n"
    "      --repetition-penalty X   above 1: repeat less [1]\n"
    "      --seed N          the same seed gives the same text [the time]\n"
    "      --ids \"1 2 3\"     a prompt of token ids; ids are printed\n"
    COMMON_USAGE;

/* ---- The command line ---- */

static arguments parse(int count, char **words) {
  arguments a = {.tokens = 128, .top_p = 1, .repetition_penalty = 1};
  const option options[] = {
      {"-p", "--prompt", .text = &a.prompt},
      {"", "--chat", .flag = &a.chat},
      {"", "--system", .text = &a.system},
      {"-n", "--tokens", .integer = &a.tokens},
      {"-c", "--context", .integer = &a.context},
      {"", "--temp", .real = &a.temperature},
      {"", "--top-k", .integer = &a.top_k},
      {"", "--top-p", .real = &a.top_p},
      {"", "--min-p", .real = &a.min_p},
      {"", "--repetition-penalty", .real = &a.repetition_penalty},
      {"", "--seed", .text = &a.seed},
      {"", "--ids", .text = &a.ids},
      COMMON_OPTIONS(a.common),
  };
  parse_options(options, sizeof options / sizeof *options, count, words);
  return a;
}

/* ---- The model ---- */

typedef struct state {
  const arguments *a;
  model_model *model;
  model_session *session;
  void *workspace, *sample_workspace;
  size_t workspace_bytes;
  float *logits;
  model_sampling sampling;
  int32_t *ids; /* all that the session holds or is about to */
  int32_t count, room;
} state;

static state start(const arguments *a, model_model *model) {
  state s = {.a = a, .model = model, .logits = take(sizeof(float) * MODEL_VOCAB_SIZE)};
  s.room = a->context && a->context < MODEL_MAX_POSITIONS ? a->context : MODEL_MAX_POSITIONS;
  s.ids = take(sizeof(int32_t) * (size_t)s.room);
  s.sample_workspace = take(MODEL_SAMPLE_BYTES);
  s.sampling = (model_sampling){
      .size = sizeof s.sampling,
      .repetition_penalty = a->repetition_penalty,
      .repetition_window = 64,
      .top_k = a->top_k,
      .top_p = a->top_p,
      .min_p = a->min_p,
      .temperature = a->temperature,
      .seed = a->seed ? (uint64_t)number("--seed", a->seed, 9e15) : (uint64_t)time(NULL),
  };
  return s;
}

/* Evaluates what the session does not hold yet; the logits are those of the last id. */
static void feed(state *s) {
  if (!s->session) { /* the system gives its memory as it is touched */
    const size_t bytes = model_session_bytes(s->room);
    check(model_session_init(s->model, take(bytes), bytes, &s->session));
  }
  while (model_position(s->session) < s->count) {
    const int32_t at = model_position(s->session), left = s->count - at;
    const int32_t n = left < MODEL_MAX_TOKENS ? left : MODEL_MAX_TOKENS;
    const size_t need = model_workspace_bytes(s->model, n, 1);
    if (need > s->workspace_bytes) {
      s->workspace = take(need);
      s->workspace_bytes = need;
    }
    const model_item item = {s->session, s->ids + at, n, 1, s->logits};
    check(model_eval(s->model, s->workspace, need, &item, 1));
  }
}

static void append(state *s, const int32_t *ids, size_t count) {
  if (count > (size_t)(s->room - s->count)) fail("the text is too long: %d tokens fit", (int)s->room);
  if (count) memcpy(s->ids + s->count, ids, count * sizeof *ids);
  s->count += (int32_t)count;
}

/* The ids of a text; their number in *out_count. */
static int32_t *tokenized(const state *s, const char *text, size_t text_bytes, int32_t flags, size_t *out_count) {
  const size_t bytes = model_tokenize_workspace_bytes(s->model, text_bytes);
  if (!bytes) fail("this model has no tokenizer, or the text is too long: give --ids");
  void *workspace = take(bytes);
  size_t count = 0;
  const model_status counted = model_tokenize(s->model, text, text_bytes, flags, workspace, bytes, NULL, 0, &count);
  if (counted != MODEL_SIZE) check(counted);
  int32_t *ids = malloc((count + 1) * sizeof *ids);
  if (!ids) fail("no memory for the text");
  check(model_tokenize(s->model, text, text_bytes, flags, workspace, bytes, ids, count, out_count));
  return ids;
}

/* A text that grows. */
typedef struct buffer {
  char *text;
  size_t bytes, room;
} buffer;

static char *room_for(buffer *b, size_t bytes) {
  if (bytes > b->room - b->bytes) {
    b->room = 2 * (b->bytes + bytes);
    b->text = realloc(b->text, b->room);
    if (!b->text) fail("no memory for the text");
  }
  return b->text + b->bytes;
}

static void print_text(const state *s, model_decoder *decoder, const int32_t *ids, size_t count, buffer *out) {
  size_t bytes = 0;
  char *to = room_for(out, 256);
  model_status status = model_detokenize(s->model, decoder, ids, count, to, out->room - out->bytes, &bytes);
  if (status == MODEL_SIZE) {
    to = room_for(out, bytes);
    status = model_detokenize(s->model, decoder, ids, count, to, bytes, &bytes);
  }
  check(status);
  fwrite(to, 1, bytes, stdout);
  fflush(stdout);
  out->bytes += bytes;
}

/* Makes and prints tokens until the model ends the text, or there are as many as wanted. Returns the text. */
static buffer generate(state *s) {
  model_decoder decoder = {0};
  buffer text = {0};
  bool ended = false;
  for (int32_t made = 0; made < s->a->tokens && s->count < s->room && !ended; made++) {
    int32_t id;
    feed(s);
    check(model_sample(s->logits, &s->sampling, s->ids, (size_t)s->count, s->sample_workspace, MODEL_SAMPLE_BYTES, &id));
    append(s, &id, 1);
    if (s->a->ids) {
      printf(made ? " %d" : "%d", (int)id);
      fflush(stdout);
    } else if (model_is_end(s->model, id)) {
      ended = true;
    } else {
      print_text(s, &decoder, &id, 1, &text);
    }
  }
  if (!s->a->ids) print_text(s, &decoder, NULL, 0, &text);
  putchar('\n');
  return text;
}

static void read_ids(state *s, const char *text) {
  for (char *end; *text; text = end) {
    const long id = strtol(text, &end, 10);
    if (end == text) {
      if (strspn(text, " ,\n") != strlen(text)) fail("--ids takes numbers with spaces between them");
      return;
    }
    if (id < 0 || id >= MODEL_VOCAB_SIZE) fail("the id %ld is outside of the vocabulary of %d", id, MODEL_VOCAB_SIZE);
    append(s, &(int32_t){(int32_t)id}, 1);
    end += *end == ',';
  }
}

/* ---- Conversation: all of it is written in the model's format again, and what is new in it evaluated ---- */

static model_turn *add(model_turn *messages, size_t *count, const char *role, const char *content, size_t bytes) {
  messages = realloc(messages, (*count + 1) * sizeof *messages);
  if (!messages) fail("no memory for the conversation");
  messages[(*count)++] = (model_turn){role, content, bytes};
  return messages;
}

/* Takes the session back to where these ids differ from those that it holds, and notes them. */
static void replace_ids(state *s, const int32_t *ids, size_t count) {
  int32_t same = 0;
  while (same < s->count && (size_t)same < count && ids[same] == s->ids[same]) same++;
  if ((size_t)same == count && same > 0) same--; /* the last is evaluated for its logits */
  if (s->session && same < model_position(s->session)) {
    if (model_rewind(s->session, same) == MODEL_EVICTED) check(model_rewind(s->session, 0));
  }
  s->count = same;
  append(s, ids + same, count - (size_t)same);
}

static void chat(state *s) {
  model_turn *messages = NULL;
  size_t count = 0, bytes = 0;
  if (s->a->system) messages = add(messages, &count, "system", s->a->system, strlen(s->a->system));
  const bool terminal = isatty(0);
  for (;;) {
    if (terminal) fputs("> ", stdout), fflush(stdout);
    const char *said = read_input(true, &bytes);
    if (!said || !bytes) break;
    messages = add(messages, &count, "user", said, bytes);
    size_t size = 0, ids_count = 0;
    const model_status counted = model_chat(s->model, messages, count, 1, NULL, 0, &size);
    if (counted != MODEL_SIZE) check(counted);
    char *text = take(size + 1);
    check(model_chat(s->model, messages, count, 1, text, size, &size));
    int32_t *ids = tokenized(s, text, size, MODEL_CHAT_FORMAT, &ids_count);
    replace_ids(s, ids, ids_count);
    free(ids);
    const buffer answer = generate(s);
    messages = add(messages, &count, "assistant", answer.text ? answer.text : "", answer.bytes);
  }
  free(messages);
}

int main(int count, char **words) {
  const arguments a = parse(count, words);
  if (a.common.help) return printf(usage, words[0]) < 0;
  if (a.common.info) return info(), 0;
  state s = start(&a, open_model(&a.common, words[0]));
  if (a.chat) {
    chat(&s);
  } else {
    size_t bytes = a.prompt ? strlen(a.prompt) : 0;
    const char *prompt = a.prompt || a.ids ? a.prompt : read_input(false, &bytes);
    if (a.ids) {
      read_ids(&s, a.ids);
    } else {
      size_t ids_count;
      int32_t *ids = tokenized(&s, prompt, bytes, 0, &ids_count);
      append(&s, ids, ids_count);
      free(ids);
    }
    if (!s.count) fail("the prompt is empty");
    if (a.tokens < s.room - s.count) s.room = s.count + a.tokens;
    if (s.room > s.count) free(generate(&s).text);
  }
  model_close(s.model);
  if (fflush(stdout) || ferror(stdout)) fail("cannot write the text");
  return 0;
}
