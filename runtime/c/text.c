
/* ---- Text ---- */

#include "chat.h"
#include "tokenizer.h"

enum { MOST_TEXT_BYTES = 1 << 28 };

static bool has_text(const model_model *model) { return model->text.section[TEXT_FACTS] != NULL; }

size_t model_tokenize_workspace_bytes(const model_model *model, size_t text_bytes) {
  if (!model || !has_text(model) || text_bytes > MOST_TEXT_BYTES) return 0;
  return tokenizer_memory(&model->text, text_bytes, NULL, NULL);
}

/* The token that a text begins with, or -1. In the chat format it stands in the text where the template writes it. */
static int32_t first_token(const text_tables *t, const uint8_t *text, size_t bytes, int32_t flags) {
  const int32_t id = t->fact[FACT_BEGIN];
  if (!text_flag(t, TEXT_ADD_BEGIN) || flags & MODEL_NO_BEGIN || id < 0) return -1;
  uint32_t size;
  const uint8_t *token = text_token(t, id, &size);
  const bool written = size && size <= bytes && memcmp(text, token, size) == 0;
  return flags & MODEL_CHAT_FORMAT && written ? -1 : id;
}

model_status model_tokenize(const model_model *model, const char *text, size_t text_bytes, int32_t flags,
                            void *workspace, size_t bytes, int32_t *out_ids, size_t capacity, size_t *out_count) {
  if (!model || (!text && text_bytes) || text_bytes > MOST_TEXT_BYTES || !out_count) return MODEL_INVALID;
  if (!workspace || !is_aligned(workspace) || (!out_ids && capacity)) return MODEL_INVALID;
  if (!has_text(model)) return MODEL_NO_TEXT;
  if (bytes < model_tokenize_workspace_bytes(model, text_bytes)) return MODEL_SIZE;
  const text_tables *t = &model->text;
  const uint8_t *from = (const uint8_t *)(text ? text : "");
  if (!utf8_valid(from, text_bytes)) return MODEL_ENCODING;
  id_list list = {.ids = out_ids, .room = capacity};
  tokenizer k;
  tokenizer_memory(t, text_bytes, workspace, &k);
  k.out = &list;
  const int32_t begin = first_token(t, from, text_bytes, flags);
  if (begin >= 0) id_add(&list, begin);
  tokenize_text(&k, from, text_bytes, (flags & (MODEL_PARSE_SPECIAL | MODEL_CHAT_FORMAT)) != 0);
  const bool end = text_flag(t, TEXT_ADD_END) && !(flags & (MODEL_NO_END | MODEL_CHAT_FORMAT));
  if (end && t->fact[FACT_END] >= 0) id_add(&list, t->fact[FACT_END]);
  *out_count = list.count;
  return list.count > capacity ? MODEL_SIZE : MODEL_OK;
}

model_status model_detokenize(const model_model *model, model_decoder *decoder, const int32_t *ids, size_t count,
                              char *out_text, size_t capacity, size_t *out_bytes) {
  if (!model || !decoder || (!ids && count) || (!out_text && capacity) || !out_bytes) return MODEL_INVALID;
  if (decoder->pending_bytes < 0 || decoder->pending_bytes > 3) return MODEL_INVALID;
  if (!has_text(model)) return MODEL_NO_TEXT;
  const text_tables *t = &model->text;
  model_decoder after = *decoder;
  text_sink out = {.text = out_text, .room = capacity};
  utf8_pending pending = {.count = (uint8_t)decoder->pending_bytes};
  memcpy(pending.bytes, decoder->pending, sizeof pending.bytes);
  if (!ids) utf8_replace(&pending, &out);
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= text_vocabulary(t)) continue;
    if (!decoder->keep_special && t->section[TEXT_TOKEN_KINDS][ids[i]] & TOKEN_SPECIAL) continue;
    uint32_t size, at = 0;
    const uint8_t *token = text_token(t, ids[i], &size);
    if (size && after.from_start) {
      at = text_flag(t, TEXT_STRIP_SPACE) && *token == ' ';
      after.from_start = 0;
    }
    for (; at < size; at++) utf8_push(&pending, token[at], &out);
  }
  *out_bytes = out.size;
  if (out.size > capacity) return MODEL_SIZE;
  memcpy(after.pending, pending.bytes, sizeof pending.bytes);
  after.pending_bytes = pending.count;
  *decoder = after;
  return MODEL_OK;
}

int32_t model_is_end(const model_model *model, int32_t id) {
  if (!model || !has_text(model) || id < 0 || id >= text_vocabulary(&model->text)) return 0;
  return (model->text.section[TEXT_TOKEN_KINDS][id] & TOKEN_END) != 0;
}

model_status model_chat(const model_model *model, const model_turn *messages, size_t count, int32_t answer,
                        char *out_text, size_t capacity, size_t *out_bytes) {
  if (!model || (!messages && count) || (!out_text && capacity) || !out_bytes) return MODEL_INVALID;
  if (!has_text(model) || !text_flag(&model->text, TEXT_HAS_CHAT)) return MODEL_NO_TEXT;
  const text_tables *t = &model->text;
  text_sink out = {.text = out_text, .room = capacity};
  uint32_t left = CHAT_START;
  for (size_t i = 0; i < count; i++) {
    const model_turn *m = &messages[i];
    if (!m->role || (!m->content && m->content_bytes)) return MODEL_INVALID;
    const uint8_t *content = (const uint8_t *)(m->content ? m->content : "");
    if (!utf8_valid(content, m->content_bytes)) return MODEL_ENCODING;
    const uint32_t role = chat_role(t, m->role);
    const uint32_t where = (i == 1 ? CHAT_FIRST : 0u) | (i == count - 1 ? CHAT_LAST : 0u);
    if (role == UINT32_MAX || !chat_gap(t, left, role, where, &out)) return MODEL_TEMPLATE;
    if (!chat_content(t, role, (chat_text){content, content + m->content_bytes}, &out)) return MODEL_TEMPLATE;
    left = role;
  }
  const uint32_t right = answer ? CHAT_GENERATE : CHAT_END;
  if (!chat_gap(t, left, right, count == 1 ? CHAT_FIRST : 0u, &out)) return MODEL_TEMPLATE;
  *out_bytes = out.size;
  return out.size > capacity ? MODEL_SIZE : MODEL_OK;
}
