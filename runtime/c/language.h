
/* ---- Sessions: one text each, in memory that the caller owns ----
 *
 * A session's memory holds no pointers: it may be moved or copied (to an aligned place) between calls. To let a session
 * grow, give it more memory, its old bytes at the start (realloc), and call model_session_resize. Freeing the memory
 * ends the session; there is nothing else to free. */
typedef struct model_session model_session;

/* Exact bytes for a session of up to `positions` tokens, 0 unless it is 1 to MODEL_MAX_POSITIONS:
 * @SESSION_FORMULA@ */
MODEL_API size_t model_session_bytes(int32_t positions);

/* Makes an empty session of `memory`, whose bytes may hold anything; *out_session is `memory`. INVALID, SIZE. */
MODEL_API model_status model_session_init(model_model *model, void *memory, size_t bytes, model_session **out_session);

/* Tells a session that its memory has `bytes` bytes now. INVALID; SIZE where its tokens would not fit. */
MODEL_API model_status model_session_resize(model_session *session, size_t bytes);

/* Makes a session of `memory` that holds the first `position` tokens of another, which stays as it is: texts that begin
 * alike are evaluated once. The memories may not overlap.
 * INVALID beyond model_position; EVICTED between 0 and model_rewind_limit; SIZE. */
MODEL_API model_status model_session_fork(const model_session *session, int32_t position, void *memory, size_t bytes,
                                          model_session **out_session);

/* Tokens that the session holds, and the most it can hold. */
MODEL_API int32_t model_position(const model_session *session);
MODEL_API int32_t model_capacity(const model_session *session);

/* Takes the session back to its first `position` tokens. INVALID beyond model_position; EVICTED between 0 and
 * model_rewind_limit. */
MODEL_API model_status model_rewind(model_session *session, int32_t position);

/* The earliest position but 0 that the session can be taken back to. */
MODEL_API int32_t model_rewind_limit(const model_session *session);

/* Exact bytes that model_save writes of the session as it is. */
MODEL_API size_t model_save_bytes(const model_session *session);

/* Writes the session to `out`, which needs no alignment. Any variant of this model can restore it, on any machine. It
 * holds all bytes of pages that are in use: what lay in a session's memory before its tokens too. INVALID, SIZE. */
MODEL_API model_status model_save(const model_model *model, const model_session *session, void *out, size_t bytes);

/* Makes a session of `memory` from what was saved, of exactly `saved_bytes` bytes at any address; it may come from
 * anywhere. INVALID; DAMAGED unless it is what model_save wrote, of this model; SIZE where `memory` is too small. */
MODEL_API model_status model_restore(model_model *model, const void *saved, size_t saved_bytes, void *memory,
                                     size_t bytes, model_session **out_session);

/* ---- Evaluation ---- */

/* The next tokens of one session. */
typedef struct model_item {
  model_session *session;
  const int32_t *ids;
  int32_t id_count;    /* at least 1 */
  int32_t rows_wanted; /* 0 to id_count */
  float *logits;       /* out: [rows_wanted][MODEL_OUTPUT_WIDTH], of the last rows_wanted tokens; may be null for 0 */
} model_item;

/* Exact bytes of workspace for an eval of T tokens and R wanted rows over all its items; 0 unless T is 1 to
 * MODEL_MAX_TOKENS and R 0 to T, where 0 counts as 1:
 * @WORKSPACE_FORMULA@ */
MODEL_API size_t model_workspace_bytes(const model_model *model, int32_t tokens, int32_t rows);

/* Advances every item's session by its tokens, in one pass over the weights. No session comes twice; the ids' counts
 * sum to at most MODEL_MAX_TOKENS. The workspace may hold anything, before and after.
 * INVALID (ids outside the vocabulary as well), SIZE, CONTEXT. */
MODEL_API model_status model_eval(model_model *model, void *workspace, size_t bytes, const model_item *items, size_t count);
