
/* ---- Language models: sessions and evaluation ---- */

/* The first MODEL_HEADER_BYTES of a session's memory; what follows is laid out by the program. */
struct model_session {
  uint64_t fingerprint; /* of the model that the session belongs to */
  int32_t capacity;
  int32_t position;
  int32_t furthest; /* position that was ever reached: rings hold what lies before it */
  int32_t taken;    /* by an eval that is being checked */
};

enum { PAGE = 256 };

/* Whether memory holds a session of this model; one that was restored may hold anything. */
static bool is_session(const model_session *s) {
  if (!s || !is_aligned(s) || s->fingerprint != MODEL_FINGERPRINT) return false;
  if (s->position < 0 || s->position > s->capacity || s->capacity > MODEL_MAX_POSITIONS) return false;
  return s->furthest >= s->position && s->furthest <= MODEL_MAX_POSITIONS;
}

size_t model_session_bytes(int32_t positions) {
  if (positions < 1 || positions > MODEL_MAX_POSITIONS) return 0;
  return MODEL_SESSION_FIXED_BYTES + ((size_t)positions + PAGE - 1) / PAGE * MODEL_SESSION_PAGE_BYTES;
}

/* The positions that fit, given that `bytes` is enough for one. */
static int32_t capacity_of(size_t bytes) {
  const size_t page = MODEL_SESSION_PAGE_BYTES; /* 0 where every layer has a ring */
  const size_t pages = (bytes - MODEL_SESSION_FIXED_BYTES) / size_max(page, 1);
  if (page == 0 || pages > MODEL_MAX_POSITIONS / PAGE) return MODEL_MAX_POSITIONS;
  return int_min((int32_t)pages * PAGE, MODEL_MAX_POSITIONS);
}

model_status model_session_init(model_model *model, void *memory, size_t bytes, model_session **out_session) {
  if (!model || !memory || !is_aligned(memory) || !out_session) return MODEL_INVALID;
  if (bytes < model_session_bytes(1)) return MODEL_SIZE;
  model_session *session = memory;
  memset(session, 0, MODEL_HEADER_BYTES);
  *session = (model_session){.fingerprint = MODEL_FINGERPRINT, .capacity = capacity_of(bytes)};
  *out_session = session;
  return MODEL_OK;
}

model_status model_session_resize(model_session *session, size_t bytes) {
  if (!is_session(session)) return MODEL_INVALID;
  if (bytes < model_session_bytes(int_max(session->position, 1))) return MODEL_SIZE;
  session->capacity = capacity_of(bytes);
  return MODEL_OK;
}

int32_t model_position(const model_session *session) { return session->position; }

int32_t model_capacity(const model_session *session) { return session->capacity; }

int32_t model_rewind_limit(const model_session *session) {
  return int_min(int_max(session->furthest - MODEL_REWIND, 0), session->position);
}

model_status model_rewind(model_session *session, int32_t position) {
  if (!is_session(session) || position < 0 || position > session->position) return MODEL_INVALID;
  if (position > 0 && position < model_rewind_limit(session)) return MODEL_EVICTED;
  session->position = position;
  if (position == 0) session->furthest = 0;
  return MODEL_OK;
}

/* What of a session's memory holds its first `position` tokens: its rings and its first pages. */
static size_t used_bytes(int32_t position) { return position > 0 ? model_session_bytes(position) : MODEL_HEADER_BYTES; }

model_status model_session_fork(const model_session *session, int32_t position, void *memory, size_t bytes,
                                model_session **out_session) {
  if (!is_session(session) || !memory || !is_aligned(memory) || !out_session) return MODEL_INVALID;
  if (position < 0 || position > session->position) return MODEL_INVALID;
  if (position > 0 && position < model_rewind_limit(session)) return MODEL_EVICTED;
  if (bytes < model_session_bytes(int_max(position, 1))) return MODEL_SIZE;
  memcpy(memory, session, used_bytes(position));
  model_session *forked = memory;
  forked->position = position;
  if (position == 0) forked->furthest = 0;
  forked->capacity = capacity_of(bytes);
  *out_session = forked;
  return MODEL_OK;
}

/* ---- Saved sessions: this header, then what follows the header in the session's memory ---- */

typedef struct saved_header {
  char magic[8];
  uint64_t fingerprint; /* of the model, as in a session */
  uint64_t weights;     /* their sum: the same model with other weights is another */
  uint64_t sum;         /* of all that is saved, this number being 0 */
  int32_t position, furthest;
} saved_header;

static const char saved_magic[8] = {'i', 'n', 'f', 'e', 'r', 'c', 's', '1'};

static size_t saved_bytes_at(int32_t position) {
  return sizeof(saved_header) + used_bytes(position) - MODEL_HEADER_BYTES;
}

size_t model_save_bytes(const model_session *session) {
  return is_session(session) ? saved_bytes_at(session->position) : 0;
}

/* The sum of a header and of what follows it, whose words go on counting. */
static uint64_t saved_sum(saved_header header, const uint8_t *rest, size_t bytes) {
  header.sum = 0;
  return sum_of((const uint8_t *)&header, sizeof header, 0) + sum_of(rest, bytes, sizeof header / 8);
}

model_status model_save(const model_model *model, const model_session *session, void *out, size_t bytes) {
  if (!model || !is_session(session) || !out) return MODEL_INVALID;
  const size_t size = saved_bytes_at(session->position), rest = size - sizeof(saved_header);
  if (bytes < size) return MODEL_SIZE;
  saved_header header = {
      .fingerprint = MODEL_FINGERPRINT,
      .weights = model_own_weights.sum,
      .position = session->position,
      .furthest = session->furthest,
  };
  memcpy(header.magic, saved_magic, sizeof saved_magic);
  uint8_t *to = out;
  memcpy(to + sizeof header, (const char *)session + MODEL_HEADER_BYTES, rest);
  header.sum = saved_sum(header, to + sizeof header, rest);
  memcpy(to, &header, sizeof header);
  return MODEL_OK;
}

model_status model_restore(model_model *model, const void *saved, size_t saved_bytes, void *memory, size_t bytes,
                           model_session **out_session) {
  if (!model || !saved || !memory || !is_aligned(memory) || !out_session) return MODEL_INVALID;
  saved_header header;
  if (saved_bytes < sizeof header) return MODEL_DAMAGED;
  memcpy(&header, saved, sizeof header);
  if (memcmp(header.magic, saved_magic, sizeof saved_magic) != 0) return MODEL_DAMAGED;
  if (header.fingerprint != MODEL_FINGERPRINT || header.weights != model_own_weights.sum) return MODEL_DAMAGED;
  if (header.position < 0 || header.position > MODEL_MAX_POSITIONS) return MODEL_DAMAGED;
  if (header.furthest < header.position || header.furthest > MODEL_MAX_POSITIONS) return MODEL_DAMAGED;
  if (saved_bytes != saved_bytes_at(header.position)) return MODEL_DAMAGED;
  const uint8_t *from = (const uint8_t *)saved + sizeof header;
  const size_t rest = saved_bytes - sizeof header;
  if (header.sum != saved_sum(header, from, rest)) return MODEL_DAMAGED;
  if (bytes < model_session_bytes(int_max(header.position, 1))) return MODEL_SIZE;
  model_session *session = memory;
  memset(session, 0, MODEL_HEADER_BYTES);
  *session = (model_session){
      .fingerprint = MODEL_FINGERPRINT,
      .capacity = capacity_of(bytes),
      .position = header.position,
      .furthest = header.furthest,
  };
  memcpy((char *)memory + MODEL_HEADER_BYTES, from, rest);
  *out_session = session;
  return MODEL_OK;
}

/* The parts of an eval's workspace, in their order; the arena follows. */
typedef struct parts {
  char **sessions;
  int32_t *tokens, *sequence, *position, *rows;
  float *logits;
  uint8_t *arena;
} parts;

static size_t padded(size_t bytes) { return (bytes + MODEL_ALIGNMENT - 1) / MODEL_ALIGNMENT * MODEL_ALIGNMENT; }

static size_t lists_bytes(size_t tokens, size_t rows) {
  return padded(8 * tokens) + 3 * padded(4 * tokens) + padded(4 * rows) + padded(4 * rows * MODEL_OUTPUT_WIDTH);
}

static parts split(uint8_t *at, size_t tokens, size_t rows) {
  parts p;
  p.sessions = (char **)(void *)at, at += padded(8 * tokens);
  p.tokens = (int32_t *)(void *)at, at += padded(4 * tokens);
  p.sequence = (int32_t *)(void *)at, at += padded(4 * tokens);
  p.position = (int32_t *)(void *)at, at += padded(4 * tokens);
  p.rows = (int32_t *)(void *)at, at += padded(4 * rows);
  p.logits = (float *)(void *)at, at += padded(4 * rows * MODEL_OUTPUT_WIDTH);
  p.arena = at;
  return p;
}

size_t model_workspace_bytes(const model_model *model, int32_t tokens, int32_t rows) {
  if (!model || tokens < 1 || tokens > MODEL_MAX_TOKENS || rows < 0 || rows > tokens) return 0;
  rows = int_max(rows, 1);
  return lists_bytes((size_t)tokens, (size_t)rows) + model->program->step_arena_bytes(model->threads, tokens, rows);
}

/* Whether an item can be evaluated after `tokens` others; marks its session as taken. */
static model_status check_item(const model_item *item, int32_t tokens) {
  model_session *session = item->session;
  if (!is_session(session) || session->taken || !item->ids || item->id_count < 1) return MODEL_INVALID;
  if (item->rows_wanted < 0 || item->rows_wanted > item->id_count) return MODEL_INVALID;
  if (item->rows_wanted > 0 && !item->logits) return MODEL_INVALID;
  if (item->id_count > session->capacity - session->position) return MODEL_CONTEXT;
  if (item->id_count > MODEL_MAX_TOKENS - tokens) return MODEL_INVALID;
  for (int32_t i = 0; i < item->id_count; i++) { /* last: a count too large is no reason to read so many */
    if (item->ids[i] < 0 || item->ids[i] >= MODEL_VOCAB_SIZE) return MODEL_INVALID;
  }
  session->taken = 1;
  return MODEL_OK;
}

/* Checks all items and counts their tokens and rows. */
static model_status check_items(const model_item *items, size_t count, int32_t *tokens, int32_t *rows) {
  model_status status = MODEL_OK;
  size_t checked = 0;
  for (; checked < count; checked++) {
    status = check_item(&items[checked], *tokens);
    if (status != MODEL_OK) break;
    *tokens += items[checked].id_count, *rows += items[checked].rows_wanted;
  }
  for (size_t i = 0; i < checked; i++) items[i].session->taken = 0;
  return status;
}

/* Where the step writes: the caller's memory if the wanted rows are to lie there one after another, else the workspace. */
static float *place_logits(const model_item *items, size_t count, float *workspace) {
  float *first = NULL, *next = NULL;
  for (size_t i = 0; i < count; i++) {
    if (items[i].rows_wanted == 0) continue;
    if (first && items[i].logits != next) return workspace;
    if (!first) first = items[i].logits;
    next = items[i].logits + (size_t)items[i].rows_wanted * MODEL_OUTPUT_WIDTH;
  }
  return first;
}

model_status model_eval(model_model *model, void *workspace, size_t bytes, const model_item *items, size_t count) {
  int32_t tokens = 0, rows = 0;
  if (!model || !workspace || !is_aligned(workspace) || (count && !items)) return MODEL_INVALID;
  if (count == 0) return MODEL_OK;
  const model_status status = check_items(items, count, &tokens, &rows);
  if (status != MODEL_OK) return status;
  if (bytes < model_workspace_bytes(model, tokens, rows)) return MODEL_SIZE;
  const int32_t planned_rows = int_max(rows, 1); /* a step has at least one; without logits it does not look */
  const parts p = split(workspace, (size_t)tokens, (size_t)planned_rows);
  int32_t t = 0, row = 0;
  for (size_t i = 0; i < count; i++) {
    p.sessions[i] = (char *)items[i].session;
    for (int32_t j = 0; j < items[i].id_count; j++, t++) {
      p.tokens[t] = items[i].ids[j];
      p.sequence[t] = (int32_t)i;
      p.position[t] = items[i].session->position + j;
      if (j >= items[i].id_count - items[i].rows_wanted) p.rows[row++] = t;
    }
  }
  float *logits = place_logits(items, count, p.logits);
  const visit v = visit_begin(model, p.sessions, (int32_t)count);
  model->program->step(&v.run, tokens, planned_rows, p.tokens, p.sequence, p.position, p.rows, logits, p.arena);
  visit_end(model, &v);
  const float *from = p.logits;
  for (size_t i = 0; i < count; i++) {
    model_session *session = items[i].session;
    const size_t size = (size_t)items[i].rows_wanted * MODEL_OUTPUT_WIDTH;
    if (logits == p.logits && size) memcpy(items[i].logits, from, size * sizeof *from);
    from += size;
    session->position += items[i].id_count;
    session->furthest = int_max(session->furthest, session->position);
  }
  return MODEL_OK;
}
